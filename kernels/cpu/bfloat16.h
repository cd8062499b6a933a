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
  // How to go about it, from Kernels::bf16_plan.
  int64_t row_tile;     // pixels per task, at most kRowTile
  int64_t group;        // tiles of pixels that read a panel one after the other, at least 1
  int64_t block_rows;   // output rows of one image per task, see tile_conv2d.h; 0: pixels, wherever they are
  int64_t block_units;  // and units per task, whole panels
  bool joined;          // whether what a row of the kernel reads lies together there
};

static inline int64_t bf16_rows(const Bf16Params& p) { return p.batch * p.h.out * p.w.out; }

static inline int64_t bf16_blocks(const Bf16Params& p) { return (p.h.out + p.block_rows - 1) / p.block_rows; }

// A task is one tile of pixels, which may be of several images, times one panel; tasks of one tile are neighbours, so
// that a range gathers a tile once. Or it is a block of rows of one image times some units; then tasks of the same
// units are neighbours, so that a range arranges their weights once.
static inline int64_t bf16_tasks(const Bf16Params& p) {
  if (p.block_rows == 0) return (bf16_rows(p) + p.row_tile - 1) / p.row_tile * panel_count(p.units);
  return (p.units + p.block_units - 1) / p.block_units * p.batch * bf16_blocks(p);
}

}  // namespace dynprune
