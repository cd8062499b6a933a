#include <climits>

#include "depthwise.h"
#include "plan.h"

namespace dynprune::cuda {

namespace {

// A block's pixels and units. Named like the tiles of products, whose epilogue it shares.
struct DepthwiseTile {
  static constexpr int kRows = 32, kUnits = 64, kThreads = 128, kBlocks = 4;
  static constexpr int kProductStride = kUnits + 8;
  static constexpr int kTaps = 32;  // whose weights are in shared memory at a time, as float [kTaps][kUnits]
  static constexpr int kProductBytes = kRows * kProductStride * 4, kWeightBytes = kTaps * kUnits * 4;
  static constexpr int kGroups = kThreads / (kUnits / kVector);
  static constexpr int kUsageBytes = kGroups * 5 * kUnits * 4;
  static constexpr int kScratchBytes = kProductBytes + kWeightBytes;
  static_assert(kUsageBytes <= kScratchBytes);
  static constexpr int kSharedBytes = kScratchBytes + 4 * kRows * 4;       // then zones, images, y and x of the pixels
  static constexpr int kSteps = kThreads / kUnits, kOwn = kRows / kSteps;  // rows of a thread
};

struct DepthwiseLaunch : DepthwiseParams, ProductLaunch {};

template <Number number>
struct DepthwiseKernel : DepthwiseTile {
  typedef DepthwiseLaunch Params;

  static DYNPRUNE_DEVICE float load(const void* p, int64_t at) {
    if constexpr (element_bytes(number) == 4) {
      return static_cast<const float*>(p)[at];
    } else {
      const uint16_t half = static_cast<const uint16_t*>(p)[at];
      return number == Number::f16 ? from_f16(half) : from_bf16(half);
    }
  }

  static DYNPRUNE_DEVICE void run(const DepthwiseLaunch& p) {
    const int pixels = static_cast<int>(p.batch * p.h.out * p.w.out);
    const int row = block().x * kRows, rows = at_most(kRows, pixels - row);
    const int64_t unit = static_cast<int64_t>(block().y) * kUnits, units = counted(p.units, p.unit_count);
    if (unit >= units) return;  // all of the block: nobody waits for it
    float* const product = reinterpret_cast<float*>(shared());
    float* const weights = product + kRows * kProductStride;
    int* const zones = reinterpret_cast<int*>(shared() + kScratchBytes);
    int *const images = zones + kRows, *const ys = images + kRows, *const xs = ys + kRows;
    const int width = static_cast<int>(p.w.out), per_image = static_cast<int>(p.h.out) * width;
    const bool zoned = p.bias != nullptr && zone_count(p.h) * zone_count(p.w) > 1;
    if (thread() < rows) {
      const int pixel = row + thread(), in_image = pixel % per_image, y = in_image / width, x = in_image - y * width;
      images[thread()] = pixel / per_image;
      ys[thread()] = y * static_cast<int>(p.h.stride) - static_cast<int>(p.h.padding);
      xs[thread()] = x * static_cast<int>(p.w.stride) - static_cast<int>(p.w.padding);
      zones[thread()] = static_cast<int>(zone_of(p.h, y) * zone_count(p.w) + zone_of(p.w, x));
    }
    const int own = thread() % kUnits, first = thread() / kUnits;
    const bool there = unit + own < units;
    const int64_t channel = there && p.unit_channels != nullptr ? p.unit_channels[unit + own] : unit + own;
    const int kernel_w = static_cast<int>(p.w.kernel), taps = static_cast<int>(p.h.kernel) * kernel_w;
    const int height = static_cast<int>(p.h.in), input_width = static_cast<int>(p.w.in);
    float sums[kOwn] = {};
    DYNPRUNE_NO_UNROLL
    for (int piece = 0; piece < taps; piece += kTaps) {
      const int some = at_most(kTaps, taps - piece);
      sync();  // the weights of the piece before are used, and the pixels' places are there
      DYNPRUNE_NO_UNROLL
      for (int tap = first; tap < some && there; tap += kSteps) {
        weights[tap * kUnits + own] = load(p.weight, (unit + own) * p.unit_stride + (piece + tap) * p.tap_stride);
      }
      sync();
      DYNPRUNE_NO_UNROLL
      for (int tap = 0; tap < some && there; ++tap) {
        const float weight = weights[tap * kUnits + own];
        const int tap_y = (piece + tap) / kernel_w, tap_x = piece + tap - tap_y * kernel_w;
        const int below = tap_y * static_cast<int>(p.h.dilation), right = tap_x * static_cast<int>(p.w.dilation);
        DYNPRUNE_UNROLL
        for (int i = 0; i < kOwn; ++i) {
          const int r = first + i * kSteps;
          if (r >= rows) continue;
          const int y = ys[r] + below, x = xs[r] + right;
          if (y < 0 || y >= height || x < 0 || x >= input_width) continue;
          sums[i] += weight * load(p.input, images[r] * p.stride_n + y * p.stride_h + x * p.stride_w + channel);
        }
      }
    }
    DYNPRUNE_UNROLL
    for (int i = 0; i < kOwn; ++i) product[(first + i * kSteps) * kProductStride + own] = sums[i];
    sync();
    finish<DepthwiseTile, number>(p.epilogue, block().x, row, rows, unit, at_most(kUnits, units - unit),
                                  zoned ? zones : nullptr);
  }
};

}  // namespace

ProductPlan depthwise_plan(const DepthwiseParams& p) {
  ProductPlan plan{};
  plan.parts = 1;
  plan.row_tiles = ceil_div(p.batch * p.h.out * p.w.out, DepthwiseTile::kRows);
  plan.unit_tiles = ceil_div(p.units, DepthwiseTile::kUnits);
  if (p.usage != nullptr && plan.row_tiles > 1) plan.usage_bytes = plan.row_tiles * kUsageRows * p.units * 8;
  return plan;
}

Status depthwise(const DepthwiseParams& p, const ProductPlan& plan, Stream stream) {
  const int64_t pixels = p.batch * p.h.out * p.w.out;
  if (pixels == 0 || p.units == 0) return 0;
  if (pixels > INT_MAX - DepthwiseTile::kRows || p.h.in > INT_MAX / 2 || p.w.in > INT_MAX / 2) return kInvalidValue;
  const Epilogue epilogue{p.bias, p.pixel_units, nullptr, p.output, p.pixel_units, false, p.activation, {}, 0, {}};
  const DepthwiseLaunch l{p, prepare_product(p, plan, epilogue)};
  const Grid grid{plan.row_tiles, plan.unit_tiles, 1, DepthwiseTile::kSharedBytes};
  Status status = kInvalidValue;
  switch (p.number) {
    case Number::bf16: status = launch<DepthwiseKernel<Number::bf16>>(grid, l, stream); break;
    case Number::f16: status = launch<DepthwiseKernel<Number::f16>>(grid, l, stream); break;
    case Number::tf32:
    case Number::f32: status = launch<DepthwiseKernel<Number::f32>>(grid, l, stream); break;
  }
  return status != 0 ? status : finish_product(p, plan, l, stream);
}

}  // namespace dynprune::cuda
