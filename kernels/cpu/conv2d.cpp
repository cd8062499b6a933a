#include "conv2d.h"

#include "conv2d_block.h"
#include "depthwise.h"
#include "kernels.h"
#include "microkernel.h"
#include "scratch.h"
#include "winograd.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// A block's input as the products read it: element (h, w, c) at data[h * row_stride + w * column_stride + c], where
// (0, 0) is the first tap of the block's first output pixel.
struct Window {
  const float* data;
  int64_t row_stride, column_stride;
};

// Without columns beside the image, and with channels next to each other, the products can read the input itself.
bool reads_input(const Conv2dParams& p) { return p.w.padding == 0 && p.stride_c == 1 && p.input_indices == nullptr; }

int64_t window_columns(const Conv2dParams& p) { return p.w.in + 2 * p.w.padding; }

Window window_of(const Conv2dParams& p, const Block& block, float* buffer) {
  const int64_t top = block.first * p.h.stride - p.h.padding;
  if (reads_input(p)) return {block.image + top * p.stride_h, p.stride_h, p.stride_w};
  const int64_t row_floats = window_columns(p) * p.channels;
  float* to = buffer;
  for (int64_t r = 0; r < window_rows(p, block.rows); ++r, to += row_floats) {
    stage_columns(p, block.image, top + r, 0, window_columns(p), to);
  }
  return {buffer, row_floats, p.channels};
}

// product[pixels, width] for pixels [pixel, pixel + pixels) of a block that starts at output row `first`, and one panel
// of weights, row by row. Kernel rows above and below the image are left out.
void multiply(const Conv2dParams& p, const Window& window, const float* panel, int64_t width, int64_t first,
              int64_t pixel, int64_t pixels, float* product, const float* output) {
  Taps taps{};
  taps.pixel_stride = p.w.stride * window.column_stride;
  taps.tap_stride_h = p.h.dilation * window.row_stride;
  taps.tap_stride_w = p.w.dilation * window.column_stride;
  taps.kernel_w = p.w.kernel;
  taps.channels = p.channels;
  taps.output = output;
  taps.output_stride = p.pixel_units;
  if (taps.tap_stride_w == p.channels && p.channels < kLanes) {
    // A kernel row of few channels lies in one piece: longer loops.
    taps.channels *= taps.kernel_w;
    taps.kernel_w = 1;
  }
  while (pixels > 0) {
    const int64_t row = pixel / p.w.out, column = pixel % p.w.out;
    const int64_t run = min_of(pixels, p.w.out - column);
    const int64_t above = cut_low(p.h, first + row);
    taps.kernel_h = max_of(0, p.h.kernel - above - cut_high(p.h, first + row));
    taps.input =
        window.data + row * p.h.stride * window.row_stride + column * taps.pixel_stride + above * taps.tap_stride_h;
    multiply_run(run, taps, panel + above * p.w.kernel * p.channels * width, width, product, width);
    product += run * width;
    taps.output += run * p.pixel_units;
    pixel += run;
    pixels -= run;
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void conv2d_range(const Conv2dParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  if (p.depthwise) return depthwise_range(p, usage, begin, end);
  if (p.winograd) return winograd_range(p, usage, begin, end);
  const int64_t depth = p.h.kernel * p.w.kernel * p.channels;
  float* product = scratch(0, kRowTile * kPanel);
  const int64_t window_floats = window_rows(p, p.block_rows) * window_columns(p) * p.channels;
  float* buffer = reads_input(p) ? nullptr : scratch(1, window_floats);
  int32_t* zone = has_zones(p) ? reinterpret_cast<int32_t*>(scratch(2, p.block_rows * p.w.out)) : nullptr;
  for (int64_t task = begin; task < end; ++task) {
    const Block block = block_of(p, task);
    const Window window = window_of(p, block, buffer);
    find_zones(p, block.first, block.rows, zone);
    const int64_t pixels_of_block = block.rows * p.w.out;
    const Units units = units_of(p, task);
    for (int64_t unit = units.first; unit < units.last; unit += kPanel) {
      const int64_t width = padded_units(min_of(kPanel, p.units - unit));
      for (int64_t pixel = 0; pixel < pixels_of_block; pixel += kRowTile) {
        const int64_t pixels = min_of(kRowTile, pixels_of_block - pixel);
        multiply(p, window, p.weight + unit * depth, width, block.first, pixel, pixels, product,
                 block.output + pixel * p.pixel_units + unit);
        finish(p, block, zone, unit, pixel, pixels, product, width, usage);
      }
    }
  }
}

// Rows of a 1x1 convolution are as good as one long row: short rows leave registers empty.
void join_rows(Conv2dParams& p) {
  constexpr int64_t kEnough = 48;
  const auto plain = [](const ConvAxis& a) { return a.kernel == 1 && a.stride == 1 && a.padding == 0; };
  if (!plain(p.h) || !plain(p.w) || p.stride_h != p.w.in * p.stride_w) return;
  int64_t rows = 1;
  while (rows < p.h.in && (p.w.in * rows < kEnough || p.h.in % rows != 0)) ++rows;
  p.h.in = p.h.out = p.h.in / rows;
  p.w.in = p.w.out = p.w.in * rows;
  p.stride_h *= rows;
}

void conv2d_plan(Conv2dParams& p, int64_t threads) {
  constexpr int64_t kWindowFloats = 32 * 1024;  // a part of L2, beside the weights
  // Of one image, threads had better take units than rows where the weights are most of what they would all read.
  constexpr int64_t kWeightFloats = 128 * 1024;
  join_rows(p);
  const int64_t weights = p.units * p.channels * p.h.kernel * p.w.kernel;
  const bool divided = !p.depthwise && p.batch < threads && weights > kWeightFloats;
  p.unit_parts = divided ? min_of(threads, panel_count(p.units)) : 1;
  threads = (threads + p.unit_parts - 1) / p.unit_parts;
  p.winograd = winograd_pays(p, threads);
  const int64_t per_row = max_of(1, window_columns(p) * p.channels) * (p.winograd ? 2 : 1);
  int64_t rows = (kWindowFloats / per_row - (p.h.kernel - 1) * p.h.dilation) / p.h.stride;
  if (p.batch < threads) rows = min_of(rows, (p.h.out * p.batch + threads - 1) / threads);
  rows = max_of(rows, (kRowTile + p.w.out - 1) / p.w.out);  // at least one full tile
  // Equal blocks: five rows in blocks of four would be four and one.
  const int64_t blocks = (p.h.out + rows - 1) / rows;
  p.block_rows = max_of(1, (p.h.out + blocks - 1) / blocks);
}

}  // namespace dynprune::DYNPRUNE_ISA
