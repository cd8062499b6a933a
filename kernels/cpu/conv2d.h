// conv2d: channels-last convolution with bias, activation and usage sums, on packed weights.
#pragma once

#include "types.h"

namespace dynprune {

// One spatial dimension.
struct ConvAxis {
  int64_t in, out;  // sizes
  int64_t kernel, stride, padding, dilation;
  int64_t zones_low, zones_high;  // the bias table tells apart 0 .. zones - 1 taps cut off at that end
};

// Taps that fall before, and after, the image for output position `o`.
static constexpr int64_t cut_low(const ConvAxis& a, int64_t o) {
  const int64_t first = o * a.stride - a.padding;
  if (first >= 0) return 0;
  const int64_t cut = (-first + a.dilation - 1) / a.dilation;
  return cut < a.kernel ? cut : a.kernel;
}
static constexpr int64_t cut_high(const ConvAxis& a, int64_t o) {
  const int64_t last = o * a.stride - a.padding + (a.kernel - 1) * a.dilation;
  if (last < a.in) return 0;
  const int64_t cut = (last - a.in) / a.dilation + 1;
  return cut < a.kernel ? cut : a.kernel;
}

// The row of the bias table for output position `o`, along this axis.
static constexpr int64_t zone_of(const ConvAxis& a, int64_t o) {
  const int64_t low = cut_low(a, o), high = cut_high(a, o);
  return (low < a.zones_low ? low : a.zones_low - 1) * a.zones_high + (high < a.zones_high ? high : a.zones_high - 1);
}
static constexpr int64_t zone_count(const ConvAxis& a) { return a.zones_low * a.zones_high; }

// What a convolution is, whatever its element type.
struct Convolution {
  // Element (n, c, h, w) of the input lies at n * stride_n + c * stride_c + h * stride_h + w * stride_w.
  int64_t stride_n, stride_c, stride_h, stride_w;
  const float* bias;  // [zone_count(h), zone_count(w), pixel_units] at the first unit; nullptr: none
  int64_t batch, channels, units;
  int64_t pixel_units;  // of the whole output: more than `units` if this is one group of several
  ConvAxis h, w;
  ActivationSpec activation;
};

static inline bool has_zones(const Convolution& c) {
  return c.bias != nullptr && zone_count(c.h) * zone_count(c.w) > 1;
}

// Row of the bias table for each pixel of some output rows; nothing if `zone` is nullptr.
static inline void find_zones(const Convolution& c, int64_t first, int64_t rows, int32_t* zone) {
  for (int64_t r = 0; zone != nullptr && r < rows; ++r) {
    const int64_t zone_h = zone_of(c.h, first + r) * zone_count(c.w);
    for (int64_t ow = 0; ow < c.w.out; ++ow) *zone++ = static_cast<int32_t>(zone_h + zone_of(c.w, ow));
  }
}

struct Conv2dParams : Convolution {
  const float* input;
  const int64_t* input_indices;  // [channels] channels of `input` to read; nullptr: the first `channels`
  const float* weight;           // packed, see types.h; depth is (kernel_h, kernel_w, channels), channels fastest
  float* output;                 // [batch, h.out, w.out, pixel_units] at the first unit; aliases nothing
  bool depthwise;                // unit u reads channel u only (channels == units), and depth is (kernel_h, kernel_w)
  // How to go about it, from Kernels::conv2d_plan.
  int64_t block_rows;  // output rows staged at once: what fits L2, fewer where threads would be idle
  bool winograd;       // see winograd.h
  int64_t unit_parts;  // into which the panels are divided among tasks: 1, or more so that threads share the weights
};

static inline int64_t conv2d_blocks(const Conv2dParams& p) { return (p.h.out + p.block_rows - 1) / p.block_rows; }

// A task is one block of output rows of one image, for one part of the units.
static inline int64_t conv2d_tasks_of_part(const Conv2dParams& p) { return p.batch * conv2d_blocks(p); }
static inline int64_t conv2d_tasks(const Conv2dParams& p) { return p.unit_parts * conv2d_tasks_of_part(p); }

}  // namespace dynprune
