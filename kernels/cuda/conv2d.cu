#include <climits>

#include "conv2d.h"
#include "plan.h"

namespace dynprune::cuda {

namespace {

struct Conv2dLaunch : Conv2dParams, ProductLaunch {};

// The taps that pixels of the output read, `kCount` pixels for this thread.
template <int kCount>
struct PixelRows {
  const char* input;
  const char* image[kCount];  // null past the last pixel
  int y[kCount], x[kCount];   // of the first tap
  int height, width, kernel_w, taps, dilation_y, dilation_x, chunks_per_tap;
  int64_t stride_y, stride_x, tap_bytes;  // in bytes
  bool aligned;

  DYNPRUNE_DEVICE Chunk chunk(int i, int k) const {
    const TapChunk at = tap_chunk(k, chunks_per_tap);
    const int tap_y = at.tap / kernel_w, tap_x = at.tap - tap_y * kernel_w;
    const int from_y = y[i] + tap_y * dilation_y, from_x = x[i] + tap_x * dilation_x;
    const bool inside =
        image[i] != nullptr && at.tap < taps && from_y >= 0 && from_y < height && from_x >= 0 && from_x < width;
    if (!inside) return {input, 0};
    const int64_t byte = static_cast<int64_t>(at.chunk) * kChunkBytes;
    return {image[i] + from_y * stride_y + from_x * stride_x + byte, present(tap_bytes - byte)};
  }
};

// Rows of a weight whose depth goes by taps.
template <int kCount>
struct TapRows {
  const char* weight;
  const char* row[kCount];  // null past the last unit
  int taps, chunks_per_tap;
  int64_t tap_stride, tap_bytes;  // in bytes
  bool aligned;

  DYNPRUNE_DEVICE Chunk chunk(int i, int k) const {
    const TapChunk at = tap_chunk(k, chunks_per_tap);
    if (row[i] == nullptr || at.tap >= taps) return {weight, 0};
    const int64_t byte = static_cast<int64_t>(at.chunk) * kChunkBytes;
    return {row[i] + at.tap * tap_stride + byte, present(tap_bytes - byte)};
  }
};

template <class T, Number number>
struct Conv2dKernel : T {
  typedef Conv2dLaunch Params;

  static DYNPRUNE_DEVICE void run(const Conv2dLaunch& p) {
    constexpr int kBytes = element_bytes(number), kStep = T::kThreads / kSlabChunks;
    const int pixels = static_cast<int>(p.batch * p.h.out * p.w.out);
    const int row = block().x * T::kRows, rows = at_most(T::kRows, pixels - row);
    const int64_t unit = static_cast<int64_t>(block().y) * T::kUnits;
    const int64_t units = counted(p.units, p.unit_count), channels = counted(p.channels, p.channel_count);
    if (unit >= units) return;  // all of the block: nobody waits for it
    const int own = thread() / kSlabChunks, part = block().z;

    // With no channels there is one chunk per tap all the same, of nothing.
    const int chunks = static_cast<int>(ceil_div(channels > 0 ? channels * kBytes : 1, kChunkBytes));
    const int taps = static_cast<int>(p.h.kernel * p.w.kernel), width = static_cast<int>(p.w.out);
    const int per_image = static_cast<int>(p.h.out) * width;
    const char* const input = static_cast<const char*>(p.input);
    const bool aligned = is_aligned(p.input, p.stride_w * kBytes) && is_aligned(p.input, p.stride_h * kBytes) &&
                         is_aligned(p.input, p.stride_n * kBytes);
    PixelRows<T::kRowCopies> from{input,
                                  {},
                                  {},
                                  {},
                                  static_cast<int>(p.h.in),
                                  static_cast<int>(p.w.in),
                                  static_cast<int>(p.w.kernel),
                                  taps,
                                  static_cast<int>(p.h.dilation),
                                  static_cast<int>(p.w.dilation),
                                  chunks,
                                  p.stride_h * kBytes,
                                  p.stride_w * kBytes,
                                  channels * kBytes,
                                  aligned};
    DYNPRUNE_UNROLL
    for (int i = 0; i < T::kRowCopies; ++i) {
      const int pixel = row + own + i * kStep, image = pixel / per_image, in_image = pixel - image * per_image;
      const int y = in_image / width, x = in_image - y * width;
      from.image[i] = pixel < pixels ? input + image * p.stride_n * kBytes : nullptr;
      from.y[i] = y * static_cast<int>(p.h.stride) - static_cast<int>(p.h.padding);
      from.x[i] = x * static_cast<int>(p.w.stride) - static_cast<int>(p.w.padding);
    }
    const char* const weight = static_cast<const char*>(p.weight);
    const bool weight_aligned =
        is_aligned(p.weight, p.unit_stride * kBytes) && is_aligned(p.weight, p.tap_stride * kBytes);
    TapRows<T::kUnitCopies> weights{weight, {}, taps, chunks, p.tap_stride * kBytes, channels * kBytes, weight_aligned};
    DYNPRUNE_UNROLL
    for (int i = 0; i < T::kUnitCopies; ++i) {
      const int64_t u = unit + own + i * kStep;
      const int64_t source = u < units && p.indices != nullptr ? p.indices[u] : u;
      weights.row[i] = u < units ? weight + source * p.unit_stride * kBytes : nullptr;
    }
    int* const zones = reinterpret_cast<int*>(shared() + T::kScratchBytes);  // of the pixels
    const bool zoned = p.bias != nullptr && zone_count(p.h) * zone_count(p.w) > 1;
    if (zoned && thread() < rows) {
      const int in_image = (row + thread()) % per_image;
      zones[thread()] =
          static_cast<int>(zone_of(p.h, in_image / width) * zone_count(p.w) + zone_of(p.w, in_image % width));
    }

    Sums<T> sums;
    const int slabs = static_cast<int>(ceil_div(static_cast<int64_t>(taps) * chunks, kSlabChunks));
    multiply_slabs<T, number>(sums, from, weights, part_begin(part, p.split.parts, slabs),
                              part_begin(part + 1, p.split.parts, slabs));
    share_product<T>(sums, reinterpret_cast<float*>(shared()));
    const int64_t tile = block().y * ceil_div(pixels, T::kRows) + block().x;
    if (!gather_parts<T>(p.split, tile, part)) return;
    finish<T, number>(p.epilogue, block().x, row, rows, unit, at_most(T::kUnits, units - unit),
                      zoned ? zones : nullptr);
  }
};

}  // namespace

ProductPlan conv2d_plan(const Conv2dParams& p, int multiprocessors) {
  const int64_t tap_bytes = padded_depth(p.channels, p.number) * element_bytes(p.number);
  return divide(p.batch * p.h.out * p.w.out, p.units, p.h.kernel * p.w.kernel * tap_bytes, p.usage != nullptr,
                multiprocessors);
}

Status conv2d(const Conv2dParams& p, const ProductPlan& plan, Stream stream) {
  const int64_t pixels = p.batch * p.h.out * p.w.out;
  if (pixels == 0 || p.units == 0) return 0;
  if (pixels > INT_MAX - 2 * LargeTile::kRows || p.h.in > INT_MAX / 2 || p.w.in > INT_MAX / 2) return kInvalidValue;
  const Epilogue epilogue{p.bias, p.pixel_units, p.indices, p.output, p.pixel_units, false, p.activation, {}, 0, {}};
  const Conv2dLaunch l{p, prepare_product(p, plan, epilogue)};
  const Status status = launch_product<Conv2dKernel>(p.number, plan, l, stream);
  return status != 0 ? status : finish_product(p, plan, l, stream);
}

}  // namespace dynprune::cuda
