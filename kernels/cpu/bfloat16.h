// Linear layers and convolutions in bfloat16: both are products of rows gathered from the input with packed weights.
// Sums, bias, activation and usage are float32; the output is rounded once.
#pragma once

#include "conv2d.h"

namespace dynprune {

// A linear layer is a convolution 1x1 over one image, one pixel high and as wide as there are rows.
struct Bf16Params : Convolution {
  const uint16_t* input;   // channels adjacent: stride_c is 1
  const uint16_t* weight;  // packed, see types.h; depth is (kernel_h, kernel_w, channels), channels fastest
  uint16_t* output;        // [batch, h.out, w.out, pixel_units] at the first unit; aliases nothing
  int64_t row_tile;        // pixels per task, at most kRowTile
};

static inline int64_t bf16_rows(const Bf16Params& p) { return p.batch * p.h.out * p.w.out; }

// A task is one tile of pixels, which may be of several images, times one panel; tasks of one tile are neighbours, so
// that a range gathers a tile once.
static inline int64_t bf16_tasks(const Bf16Params& p) {
  return (bf16_rows(p) + p.row_tile - 1) / p.row_tile * panel_count(p.units);
}

}  // namespace dynprune
