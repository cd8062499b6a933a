// What the ways of computing a convolution share: its blocks, the staging of input rows, what comes after the products.
#pragma once

#include "conv2d.h"
#include "epilogue.h"
#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

// Input rows that `rows` output rows read.
inline int64_t window_rows(const Conv2dParams& p, int64_t rows) {
  return (rows - 1) * p.h.stride + (p.h.kernel - 1) * p.h.dilation + 1;
}

// Columns [first, last) of row `ih` of an image, counted from the left border, to `to` [last - first, channels]; zeros
// outside the image.
inline void stage_columns(const Conv2dParams& p, const float* image, int64_t ih, int64_t first, int64_t last,
                          float* to) {
  first -= p.w.padding;
  last -= p.w.padding;
  const bool outside = ih < 0 || ih >= p.h.in;
  const int64_t begin = outside ? last : min_of(max_of(first, 0), last), end = max_of(begin, min_of(last, p.w.in));
  zero(to, (begin - first) * p.channels);
  to += (begin - first) * p.channels;
  const float* from = image + ih * p.stride_h + begin * p.stride_w;
  if (p.input_indices == nullptr && p.stride_c == 1 && p.stride_w == p.channels) {
    if (end > begin) copy(to, from, (end - begin) * p.channels);
    to += (end - begin) * p.channels;
  } else {
    for (int64_t w = begin; w < end; ++w, from += p.stride_w, to += p.channels) {
      if (p.input_indices != nullptr) {
        for (int64_t c = 0; c < p.channels; ++c) to[c] = from[p.input_indices[c] * p.stride_c];
      } else if (p.stride_c == 1) {
        copy(to, from, p.channels);
      } else {
        for (int64_t c = 0; c < p.channels; ++c) to[c] = from[c * p.stride_c];
      }
    }
  }
  zero(to, (last - end) * p.channels);
}

// One task: some output rows of one image.
struct Block {
  const float* image;
  float* output;  // [rows, w.out, pixel_units]
  int64_t first, rows;
};

inline Block block_of(const Conv2dParams& p, int64_t task) {
  const int64_t blocks = conv2d_blocks(p), n = task / blocks % p.batch, first = task % blocks * p.block_rows;
  return {p.input + n * p.stride_n, p.output + (n * p.h.out + first) * p.w.out * p.pixel_units, first,
          min_of(p.block_rows, p.h.out - first)};
}

// The units of a task: whole panels.
struct Units {
  int64_t first, last;
};

inline Units units_of(const Conv2dParams& p, int64_t task) {
  const int64_t part = task / conv2d_tasks_of_part(p), panels = panel_count(p.units);
  return {part * panels / p.unit_parts * kPanel, min_of(p.units, (part + 1) * panels / p.unit_parts * kPanel)};
}

// Pixels [pixel, pixel + pixels) of a block from their products [pixels, product_stride] with the panel that starts at
// `unit`.
inline void finish(const Conv2dParams& p, const Block& block, const int32_t* zone, int64_t unit, int64_t pixel,
                   int64_t pixels, const float* product, int64_t product_stride, double* usage) {
  EpilogueTile t{};
  t.product = product;
  t.units = min_of(kPanel, p.units - unit);
  t.product_stride = product_stride;
  t.rows = pixels;
  t.bias = p.bias == nullptr ? nullptr : p.bias + unit;
  t.zone = zone == nullptr ? nullptr : zone + pixel;
  t.bias_stride = p.pixel_units;
  t.output = block.output + pixel * p.pixel_units + unit;
  t.output_stride = p.pixel_units;
  t.usage = usage == nullptr ? nullptr : usage + unit;
  t.usage_stride = padded_units(p.units);
  epilogue(t, p.activation);
}

}  // namespace dynprune::DYNPRUNE_ISA
