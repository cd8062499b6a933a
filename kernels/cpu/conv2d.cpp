#include "conv2d.h"

#include "epilogue.h"
#include "kernels.h"
#include "microkernel.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// A block's input as the products read it: element (h, w, c) at data[h * row_stride + w * column_stride + c], where
// (0, 0) is the first tap of the block's first output pixel.
struct Window {
  const float* data;
  int64_t row_stride, column_stride;
};

// Without a border, and with channels next to each other, the products can read the input itself.
bool reads_input(const Conv2dParams& p) {
  return p.h.padding == 0 && p.w.padding == 0 && p.stride_c == 1 && p.input_indices == nullptr;
}

int64_t window_rows(const Conv2dParams& p, int64_t rows) {
  return (rows - 1) * p.h.stride + (p.h.kernel - 1) * p.h.dilation + 1;
}

int64_t window_columns(const Conv2dParams& p) { return p.w.in + 2 * p.w.padding; }

inline void copy(float* to, const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) store_part(to + i, load_part(from + i, n - i), n - i);
}

inline void zero(float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, Floats{});
  if (i < n) store_part(to + i, Floats{}, n - i);
}

// One input row [w.in, channels], tight.
void copy_row(const Conv2dParams& p, const float* from, float* to) {
  if (p.input_indices == nullptr && p.stride_c == 1 && p.stride_w == p.channels) {
    copy(to, from, p.w.in * p.channels);
    return;
  }
  for (int64_t w = 0; w < p.w.in; ++w, from += p.stride_w, to += p.channels) {
    if (p.input_indices != nullptr) {
      for (int64_t c = 0; c < p.channels; ++c) to[c] = from[p.input_indices[c] * p.stride_c];
    } else if (p.stride_c == 1) {
      copy(to, from, p.channels);
    } else {
      for (int64_t c = 0; c < p.channels; ++c) to[c] = from[c * p.stride_c];
    }
  }
}

Window window_of(const Conv2dParams& p, const float* image, int64_t first, int64_t rows, float* buffer) {
  const int64_t top = first * p.h.stride - p.h.padding;
  if (reads_input(p)) return {image + top * p.stride_h, p.stride_h, p.stride_w};
  const int64_t row_floats = window_columns(p) * p.channels, border = p.w.padding * p.channels;
  float* to = buffer;
  for (int64_t r = 0; r < window_rows(p, rows); ++r, to += row_floats) {
    const int64_t ih = top + r;
    if (ih < 0 || ih >= p.h.in) {
      zero(to, row_floats);
      continue;
    }
    zero(to, border);
    copy_row(p, image + ih * p.stride_h, to + border);
    zero(to + row_floats - border, border);
  }
  return {buffer, row_floats, p.channels};
}

// product[pixels, width] for pixels [pixel, pixel + pixels) of a block and one panel of weights, row by row.
void multiply(const Conv2dParams& p, const Window& window, const float* panel, int64_t width, int64_t pixel,
              int64_t pixels, float* product) {
  Taps taps{};
  taps.pixel_stride = p.w.stride * window.column_stride;
  taps.tap_stride_h = p.h.dilation * window.row_stride;
  taps.tap_stride_w = p.w.dilation * window.column_stride;
  taps.kernel_h = p.h.kernel;
  taps.kernel_w = p.w.kernel;
  taps.channels = p.channels;
  while (pixels > 0) {
    const int64_t row = pixel / p.w.out, column = pixel % p.w.out;
    const int64_t run = min_of(pixels, p.w.out - column);
    taps.input = window.data + row * p.h.stride * window.row_stride + column * taps.pixel_stride;
    multiply_run(run, taps, panel, width, product, width);
    product += run * width;
    pixel += run;
    pixels -= run;
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void conv2d_range(const Conv2dParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  const int64_t blocks = conv2d_blocks(p), depth = p.h.kernel * p.w.kernel * p.channels;
  const bool zoned = p.bias != nullptr && zone_count(p.h) * zone_count(p.w) > 1;
  float* product = scratch(0, kRowTile * kPanel);
  const int64_t window_floats = window_rows(p, p.block_rows) * window_columns(p) * p.channels;
  float* buffer = reads_input(p) ? nullptr : scratch(1, window_floats);
  int32_t* zone = zoned ? reinterpret_cast<int32_t*>(scratch(2, p.block_rows * p.w.out)) : nullptr;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, first = task % blocks * p.block_rows;
    const int64_t rows = min_of(p.block_rows, p.h.out - first);
    const float* image = p.input + n * p.stride_n;
    const Window window = window_of(p, image, first, rows, buffer);
    for (int64_t r = 0; zoned && r < rows; ++r) {
      const int64_t zone_h = zone_of(p.h, first + r) * zone_count(p.w);
      for (int64_t ow = 0; ow < p.w.out; ++ow) zone[r * p.w.out + ow] = static_cast<int32_t>(zone_h + zone_of(p.w, ow));
    }
    float* output = p.output + (n * p.h.out + first) * p.w.out * p.units;
    const int64_t pixels_of_block = rows * p.w.out;
    for (int64_t unit = 0; unit < p.units; unit += kPanel) {
      const int64_t units = min_of(kPanel, p.units - unit), width = padded_units(units);
      for (int64_t pixel = 0; pixel < pixels_of_block; pixel += kRowTile) {
        const int64_t pixels = min_of(kRowTile, pixels_of_block - pixel);
        multiply(p, window, p.weight + unit * depth, width, pixel, pixels, product);
        EpilogueTile t{};
        t.product = product;
        t.product_stride = width;
        t.rows = pixels;
        t.units = units;
        t.bias = p.bias == nullptr ? nullptr : p.bias + unit;
        t.zone = zoned ? zone + pixel : nullptr;
        t.bias_stride = p.units;
        t.output = output + pixel * p.units + unit;
        t.output_stride = p.units;
        t.usage = usage == nullptr ? nullptr : usage + unit;
        t.usage_stride = padded_units(p.units);
        epilogue(t, p.activation);
      }
    }
  }
}

int64_t conv2d_block_rows(Conv2dParams p, int64_t threads) {
  constexpr int64_t kWindowFloats = 32 * 1024;  // a part of L2, beside the weights
  const int64_t per_row = max_of(1, window_columns(p) * p.channels);
  int64_t rows = (kWindowFloats / per_row - (p.h.kernel - 1) * p.h.dilation) / p.h.stride;
  if (p.batch < threads) rows = min_of(rows, (p.h.out * p.batch + threads - 1) / threads);
  rows = max_of(rows, (kRowTile + p.w.out - 1) / p.w.out);  // at least one full tile
  // Equal blocks: five rows in blocks of four would be four and one.
  const int64_t blocks = (p.h.out + rows - 1) / rows;
  return max_of(1, (p.h.out + blocks - 1) / blocks);
}

}  // namespace dynprune::DYNPRUNE_ISA
