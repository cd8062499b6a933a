#include "bfloat16.h"

#include "epilogue.h"
#include "gemm.h"
#include "kernels.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

int64_t depth_of(const Bf16Params& p) { return p.h.kernel * p.w.kernel * p.channels; }

// Whether the pixels' inputs lie at equal distances, so that the products can read them where they are.
bool reads_input(const Bf16Params& p) {
  const auto plain = [](const ConvAxis& a) { return a.kernel == 1 && a.stride == 1 && a.padding == 0; };
  return plain(p.h) && plain(p.w) && (p.h.in == 1 || p.stride_h == p.w.in * p.stride_w) &&
         (p.batch == 1 || p.stride_n == p.h.in * p.w.in * p.stride_w);
}

struct Pixel {
  int64_t image, row, column;  // of the output
};

Pixel pixel_at(const Bf16Params& p, int64_t index) {
  return {index / (p.h.out * p.w.out), index / p.w.out % p.h.out, index % p.w.out};
}

uint16_t* append_zeros(uint16_t* to, int64_t n) {
  std::memset(to, 0, static_cast<size_t>(n) * sizeof(uint16_t));
  return to + n;
}

uint16_t* append(uint16_t* to, const uint16_t* from, int64_t n) {
  if (n > 0) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(uint16_t));  // no channels: `from` may be null
  return to + n;
}

// What a pixel reads, in the order of the weight's depth; zeros outside the image.
void gather_pixel(const Bf16Params& p, const Pixel& pixel, uint16_t* to) {
  const int64_t kernel_row = p.w.kernel * p.channels;
  const int64_t left = cut_low(p.w, pixel.column), right = min_of(cut_high(p.w, pixel.column), p.w.kernel - left);
  const int64_t taps = p.w.kernel - left - right;
  const int64_t above = cut_low(p.h, pixel.row), below = p.h.kernel - cut_high(p.h, pixel.row);
  const int64_t top = pixel.row * p.h.stride - p.h.padding;
  const int64_t column = pixel.column * p.w.stride - p.w.padding + left * p.w.dilation;
  const bool together = p.w.dilation == 1 && p.stride_w == p.channels;
  for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
    if (kh < above || kh >= below || taps == 0) {
      to = append_zeros(to, kernel_row);
      continue;
    }
    const uint16_t* from =
        p.input + pixel.image * p.stride_n + (top + kh * p.h.dilation) * p.stride_h + column * p.stride_w;
    to = append_zeros(to, left * p.channels);
    if (together) {
      to = append(to, from, taps * p.channels);
    } else {
      for (int64_t kw = 0; kw < taps; ++kw) to = append(to, from + kw * p.w.dilation * p.stride_w, p.channels);
    }
    to = append_zeros(to, right * p.channels);
  }
}

// Two rows of a panel, side by side, to one behind the other in float32.
void widen_pair(const uint16_t* pair, int64_t width, float* to) {
  for (int64_t j = 0; j < width; ++j) {
    to[j] = widen(pair[2 * j]);
    to[width + j] = widen(pair[2 * j + 1]);
  }
}

// Where the CPU has no product in bfloat16: in float32, block by block of the depth, which is even.
void multiply_widened(int64_t rows, int64_t width, int64_t depth, const uint16_t* input, int64_t stride,
                      const uint16_t* panel, float* product) {
  constexpr int64_t kBlock = 128;
  float* wide_input = scratch(2, kRowTile * kBlock);
  float* wide_panel = scratch(3, kBlock * kPanel);
  for (int64_t k = 0; k == 0 || k < depth; k += kBlock) {
    const int64_t some = min_of(kBlock, depth - k);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < some; ++i) wide_input[r * some + i] = widen(input[r * stride + k + i]);
    }
    for (int64_t i = 0; i < some; i += 2) widen_pair(panel + (k + i) * width, width, wide_panel + i * width);
    gemm_tile(rows, width, some, wide_input, some, wide_panel, width, product, kPanel, k > 0);
  }
}

// product[rows, kPanel] = input * panel.
void multiply(int64_t rows, int64_t width, int64_t depth, const uint16_t* input, int64_t stride, const uint16_t* panel,
              float* product) {
  const int64_t even = depth / 2 * 2;
  if (even == 0 || !gemm_tile_bf16(rows, width, even, input, stride, panel, product, false)) {
    multiply_widened(rows, width, even, input, stride, panel, product);
  }
  if (even == depth) return;
  float last[kPanel] = {};  // the row without a partner
  for (int64_t j = 0; j < width; ++j) last[j] = widen(panel[even * width + j]);
  for (int64_t r = 0; r < rows; ++r) {
    const Floats x = splat(widen(input[r * stride + even]));
    float* to = product + r * kPanel;
    for (int64_t j = 0; j < width; j += kLanes) store(to + j, load(to + j) + x * load(last + j));
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void bf16_range(const Bf16Params& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  const int64_t panels = panel_count(p.units), depth = depth_of(p);
  float* product = scratch(0, kRowTile * kPanel);
  // Gathered rows begin at cache lines.
  const int64_t gathered_stride = (depth + 31) / 32 * 32;
  uint16_t* gathered =
      reads_input(p) ? nullptr : reinterpret_cast<uint16_t*>(scratch(1, p.row_tile * gathered_stride / 2));
  const bool zones = p.bias != nullptr && zone_count(p.h) * zone_count(p.w) > 1;
  int32_t zone[kRowTile];
  int64_t current = -1;  // the tile that `gathered` and `zone` belong to
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / panels, unit = task % panels * kPanel;
    const int64_t row = tile * p.row_tile, rows = min_of(p.row_tile, bf16_rows(p) - row);
    for (int64_t r = 0; r < rows && tile != current && (zones || gathered != nullptr); ++r) {
      const Pixel pixel = pixel_at(p, row + r);
      if (gathered != nullptr) gather_pixel(p, pixel, gathered + r * gathered_stride);
      zone[r] = static_cast<int32_t>(zone_of(p.h, pixel.row) * zone_count(p.w) + zone_of(p.w, pixel.column));
    }
    current = tile;
    const int64_t units = min_of(kPanel, p.units - unit);
    const uint16_t* input = gathered != nullptr ? gathered : p.input + row * p.stride_w;
    multiply(rows, padded_units(units), depth, input, gathered != nullptr ? gathered_stride : p.stride_w,
             p.weight + unit * depth, product);
    EpilogueTileOf<uint16_t> t{};
    t.product = product;
    t.product_stride = kPanel;
    t.rows = rows;
    t.units = units;
    t.bias = p.bias == nullptr ? nullptr : p.bias + unit;
    t.zone = zones ? zone : nullptr;
    t.bias_stride = p.pixel_units;
    t.output = p.output + row * p.pixel_units + unit;
    t.output_stride = p.pixel_units;
    t.usage = usage == nullptr ? nullptr : usage + unit;
    t.usage_stride = padded_units(p.units);
    epilogue(t, p.activation);
  }
  gemm_release();
}

}  // namespace dynprune::DYNPRUNE_ISA
