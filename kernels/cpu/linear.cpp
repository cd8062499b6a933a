#include "linear.h"

#include "gemm.h"
#include "kernels.h"
#include "linear_tile.h"
#include "product.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

void gather_rows(const LinearParams& p, int64_t first, int64_t rows, float* to) {
  for (int64_t r = 0; r < rows; ++r, to += p.depth) {
    const float* from = p.input + (first + r) * p.input_stride;
    for (int64_t k = 0; k < p.depth; ++k) to[k] = from[p.input_indices[k]];
  }
}

// product[rows, kPanel] = input * panel in blocks of the depth.
void multiply(const LinearParams& p, int64_t rows, int64_t width, const float* input, int64_t stride,
              const float* panel, float* product) {
  constexpr int64_t kFetched = 128;
  // Weights that come from memory are fetched a block ahead; what lies behind a panel is the next one.
  const bool fetch = p.streamed && !fetches_ahead(rows);
  const int64_t block = fetch ? kFetched : panel_block(rows, p.depth);
  for (int64_t k = 0; k == 0 || k < p.depth; k += block) {
    const int64_t some = min_of(block, p.depth - k);
    const float* weights = panel + k * width;
    for (int64_t i = 0; fetch && i < some * width; i += kLanes) {
      __builtin_prefetch(weights + block * width + i, 0, 2);
    }
    multiply_panel(rows, width, some, input + k, stride, weights, product, k > 0);
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void linear_range(const LinearParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  const int64_t panels = panel_count(p.units);
  float* product = scratch(0, kRowTile * kPanel);
  float* gathered = p.input_indices == nullptr ? nullptr : scratch(1, p.row_tile * p.depth);
  int64_t gathered_tile = -1;
  const int64_t tiles = (p.rows + p.row_tile - 1) / p.row_tile;
  for (int64_t task = begin; task < end; ++task) {
    const auto [tile, panel] = tile_task(task, tiles, panels, p.group);
    const int64_t row = tile * p.row_tile, rows = min_of(p.row_tile, p.rows - row);
    const int64_t unit = panel * kPanel, units = min_of(kPanel, p.units - unit);
    const float* input = p.input + row * p.input_stride;
    int64_t input_stride = p.input_stride;
    if (gathered != nullptr) {
      if (gathered_tile != tile) gather_rows(p, row, rows, gathered);
      gathered_tile = tile;
      input = gathered;
      input_stride = p.depth;
    }
    const int64_t width = padded_units(units);
    const float* weight = p.weight + unit * p.depth;
    multiply(p, rows, width, input, input_stride, weight, product);
    finish_linear(p, row, rows, unit, units, product, kPanel, usage);
  }
  gemm_release();
}

}  // namespace dynprune::DYNPRUNE_ISA
