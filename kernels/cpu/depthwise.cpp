#include "depthwise.h"

#include "conv2d_block.h"
#include "microkernel.h"
#include "scratch.h"
#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// Accumulators: enough to hide the latency of an addition, and few enough to leave room for the weights of a kernel
// row.
constexpr int kMostPixels = 8;

// A run of output pixels in one row whose taps all lie in the image: pixel r, kernel row kh, kernel column kw, channel
// c is at input[r * pixel_stride + kh * tap_stride_h + kw * tap_stride_w + c], its weight at weight[kh *
// weight_stride_h + kw * width + c].
struct Run {
  const float* input;
  int64_t pixel_stride, tap_stride_h, tap_stride_w;
  const float* weight;
  int64_t weight_stride_h, width;
  int64_t kernel_h, kernel_w;
  float* product;  // [pixels, product_stride]
  int64_t product_stride;
  const float* output;  // where the pixels go in the end
  int64_t output_stride;
  bool fetch_ahead;  // the input row below those that are read
};

template <bool kPart>
inline Register load_lanes(const float* p, int64_t lanes) {
  return kPart ? load_part<Register>(p, lanes) : load<Register>(p);
}

// kPixels products of the channels [c, c + lanes). kTaps taps of a kernel row are taken at a time: neighbouring pixels
// are kStride taps apart, so what one pixel loads serves the next ones too.
template <int kTaps, int kStride, int kPixels, bool kPart>
void product_tile(const Run& run, int64_t c, int64_t lanes) {
  const int64_t step = kTaps == 1 ? run.pixel_stride : run.tap_stride_w;
  const int64_t width = run.width;
  Register sum[kPixels] = {};
  const auto add_taps = [&](const float* input, const float* weight) {
    Register w[kTaps];
#pragma GCC unroll 8
    for (int t = 0; t < kTaps; ++t) w[t] = load_lanes<kPart>(weight + t * width, lanes);
#pragma GCC unroll 32
    for (int i = 0; i < (kPixels - 1) * kStride + kTaps; ++i, input += step) {
      Register x = load_lanes<kPart>(input, lanes);
      keep_in_register(x);
#pragma GCC unroll 8
      for (int r = 0; r < kPixels; ++r) {
        const int t = i - r * kStride;
        if (t >= 0 && t < kTaps) sum[r] += x * w[t];
      }
    }
  };
  const float* input = run.input + c;
  const float* weight = run.weight + c;
  for (int64_t kh = 0; kh < run.kernel_h; ++kh, input += run.tap_stride_h, weight += run.weight_stride_h) {
    if constexpr (kTaps == 1) {
      for (int64_t kw = 0; kw < run.kernel_w; ++kw) add_taps(input + kw * run.tap_stride_w, weight + kw * width);
    } else {
      add_taps(input, weight);
    }
  }
  float* product = run.product + c;
#pragma GCC unroll 8
  for (int r = 0; r < kPixels; ++r, product += run.product_stride) store(product, sum[r]);
}

template <int kTaps, int kStride, int kPixels>
void product_rest(int64_t pixels, const Run& run, int64_t units) {
  if constexpr (kPixels > 1) {
    if (pixels < kPixels) return product_rest<kTaps, kStride, kPixels - 1>(pixels, run, units);
  }
  prefetch_output(run.output, run.output_stride, kPixels, units);
  if (run.fetch_ahead) {
    const float* next = run.input + run.kernel_h * run.tap_stride_h;
    for (int i = 0; i < kPixels * kStride; ++i, next += run.tap_stride_w) {
      for (int64_t c = 0; c < units; c += kLanes) __builtin_prefetch(next + c);
    }
  }
  int64_t c = 0;
  for (; c + kRegisterLanes <= units; c += kRegisterLanes) {
    product_tile<kTaps, kStride, kPixels, false>(run, c, kRegisterLanes);
  }
  if (c < units) product_tile<kTaps, kStride, kPixels, true>(run, c, units - c);
}

// A run in tiles of nearly equal size.
template <int kTaps, int kStride>
void product_run(int64_t pixels, Run run, int64_t units) {
  for (int64_t tiles = (pixels + kMostPixels - 1) / kMostPixels; tiles > 0; --tiles) {
    const int64_t count = (pixels + tiles - 1) / tiles;
    product_rest<kTaps, kStride, kMostPixels>(count, run, units);
    run.input += count * run.pixel_stride;
    run.product += count * run.product_stride;
    run.output += count * run.output_stride;
    pixels -= count;
  }
}

typedef void (*RunProduct)(int64_t pixels, Run run, int64_t units);

// For runs with all columns of the kernel.
RunProduct run_product(const ConvAxis& w) {
  const bool one = w.stride == w.dilation, two = w.stride == 2 * w.dilation;
  if (w.kernel == 3 && one) return product_run<3, 1>;
  if (w.kernel == 3 && two) return product_run<3, 2>;
  if (w.kernel == 5 && one) return product_run<5, 1>;
  if (w.kernel == 5 && two) return product_run<5, 2>;
  return product_run<1, 1>;
}

// The output columns whose taps all lie in the image.
struct Inner {
  int64_t first, last;
};

Inner inner_columns(const ConvAxis& w) {
  Inner inner{0, w.out};
  while (inner.first < w.out && cut_low(w, inner.first) > 0) ++inner.first;
  while (inner.last > inner.first && cut_high(w, inner.last - 1) > 0) --inner.last;
  return inner;
}

// Whether a tile's inputs, read in place, do not fit the few sets of a first-level cache (8 ways, 4 KiB apart) that
// pixels at this distance fall into.
bool collides(const Conv2dParams& p) {
  const int64_t bytes = p.stride_w * static_cast<int64_t>(sizeof(float));
  const int64_t apart = bytes & -bytes;  // the largest power of two that divides it
  const int64_t sets = max_of(1, 4096 / max_of(apart, 64));
  return p.h.kernel * (kMostPixels + p.w.kernel - 1) > 8 * sets;
}

// How the rows of a block are read: in place, where the columns at the border leave taps out and cost about a load per
// tap more; or from a copy of a panel's channels with the padding around it, which costs about four loads for each
// pixel, and makes one tile of a short row.
struct Reading {
  bool staged;
  Inner inner;
  bool fetch_ahead;
};

Reading reading_of(const Conv2dParams& p) {
  const Inner inner = inner_columns(p.w);
  const int64_t border = (p.w.out - (inner.last - inner.first)) * p.h.kernel * p.w.kernel;
  const bool pays = border > 4 * p.w.in * p.h.stride || (border > 0 && p.w.stride == 1 && p.w.out <= kMostPixels);
  const bool staged = p.stride_c != 1 || p.input_indices != nullptr || pays || collides(p);
  // Inputs of a few MiB are still in a cache from the layer before; fetching them ahead costs more than it saves.
  constexpr int64_t kCachedFloats = 1024 * 1024;
  const bool fetch_ahead = !staged && p.batch * p.h.in * p.w.in * p.channels > kCachedFloats;
  return {staged, staged ? Inner{0, p.w.out} : inner, fetch_ahead};
}

int64_t window_columns(const Conv2dParams& p) { return p.w.in + 2 * p.w.padding; }

// Channel c of a panel, of row h and column w counted from the first tap of the block's first pixel, is at
// data[h * row_stride + w * column_stride + c].
struct Rows {
  const float* data;
  int64_t row_stride, column_stride;
};

// The rows of the channels [unit, unit + units).
Rows rows_of(const Conv2dParams& p, const Block& block, int64_t unit, int64_t units, float* buffer) {
  const int64_t top = block.first * p.h.stride - p.h.padding;
  if (buffer == nullptr) {
    return {block.image + top * p.stride_h - p.w.padding * p.stride_w + unit, p.stride_h, p.stride_w};
  }
  Conv2dParams part = p;
  part.channels = units;
  if (p.input_indices != nullptr) part.input_indices += unit;
  const float* image = block.image + (p.input_indices == nullptr ? unit * p.stride_c : 0);
  const int64_t row_floats = window_columns(p) * units;
  for (int64_t r = 0; r < window_rows(p, block.rows); ++r) {
    const int64_t ih = top + r;
    if (ih < 0 || ih >= p.h.in) continue;  // left out of the products
    stage_columns(part, image, ih, 0, window_columns(p), buffer + r * row_floats);
  }
  return {buffer, row_floats, units};
}

// Products of pixels [pixel, pixel + pixels) of a block and the panel of `width` whose first channel `rows` and `panel`
// point at. Taps outside the image are left out.
void multiply(const Conv2dParams& p, const Rows& rows, RunProduct inner_product, const Reading& reading,
              const float* panel, int64_t units, int64_t first, int64_t pixel, int64_t pixels, float* product,
              int64_t product_stride, const float* output) {
  Run run{};
  run.fetch_ahead = reading.fetch_ahead;
  run.output_stride = p.pixel_units;
  run.pixel_stride = p.w.stride * rows.column_stride;
  run.tap_stride_h = p.h.dilation * rows.row_stride;
  run.tap_stride_w = p.w.dilation * rows.column_stride;
  run.width = padded_units(units);
  run.weight_stride_h = p.w.kernel * run.width;
  run.product_stride = product_stride;
  for (const int64_t end = pixel + pixels; pixel < end;) {
    const int64_t row = pixel / p.w.out, column = pixel % p.w.out;
    const int64_t above = cut_low(p.h, first + row);
    run.kernel_h = max_of(0, p.h.kernel - above - cut_high(p.h, first + row));
    run.weight = panel + above * run.weight_stride_h;
    run.input = rows.data + row * p.h.stride * rows.row_stride + above * run.tap_stride_h + column * run.pixel_stride;
    run.kernel_w = p.w.kernel;
    run.product = product;
    run.output = output;
    int64_t count = 1;
    if (column >= reading.inner.first && column < reading.inner.last) {
      count = min_of(end - pixel, reading.inner.last - column);
      inner_product(count, run, units);
    } else {
      const int64_t left = cut_low(p.w, column);
      run.kernel_w = max_of(0, p.w.kernel - left - cut_high(p.w, column));
      run.weight += left * run.width;
      run.input += left * run.tap_stride_w;
      product_run<1, 1>(1, run, units);
    }
    pixel += count;
    product += count * product_stride;
    output += count * p.pixel_units;
  }
}

}  // namespace

void depthwise_range(const Conv2dParams& p, double* usage, int64_t begin, int64_t end) {
  const int64_t depth = p.h.kernel * p.w.kernel;
  const Reading reading = reading_of(p);
  const int64_t window_floats = window_rows(p, p.block_rows) * window_columns(p) * min_of(kPanel, p.channels);
  float* product = scratch(0, kRowTile * kPanel);
  float* buffer = reading.staged ? scratch(1, window_floats) : nullptr;
  int32_t* zone = has_zones(p) ? reinterpret_cast<int32_t*>(scratch(2, p.block_rows * p.w.out)) : nullptr;
  const RunProduct inner_product = run_product(p.w);
  for (int64_t task = begin; task < end; ++task) {
    const Block block = block_of(p, task);
    find_zones(p, block.first, block.rows, zone);
    const int64_t pixels_of_block = block.rows * p.w.out;
    for (int64_t unit = 0; unit < p.units; unit += kPanel) {
      const int64_t units = min_of(kPanel, p.units - unit);
      const int64_t product_stride = (units + kLanes - 1) / kLanes * kLanes;  // whole vectors are stored
      const Rows rows = rows_of(p, block, unit, units, buffer);
      for (int64_t pixel = 0; pixel < pixels_of_block; pixel += kRowTile) {
        const int64_t pixels = min_of(kRowTile, pixels_of_block - pixel);
        multiply(p, rows, inner_product, reading, p.weight + unit * depth, units, block.first, pixel, pixels, product,
                 product_stride, block.output + pixel * p.pixel_units + unit);
        finish(p, block, zone, unit, pixel, pixels, product, product_stride, usage);
      }
    }
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
