#include "linear.h"

#include "epilogue.h"
#include "gemm.h"
#include "kernels.h"
#include "microkernel.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

void gather_rows(const LinearParams& p, int64_t first, int64_t rows, float* to) {
  for (int64_t r = 0; r < rows; ++r, to += p.depth) {
    const float* from = p.input + (first + r) * p.input_stride;
    for (int64_t k = 0; k < p.depth; ++k) to[k] = from[p.input_indices[k]];
  }
}

// ATen has a product of single tiles for AVX-512 only, and a call of BLAS for each costs more than few rows take.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kOwnProduct = true;
#else
constexpr bool kOwnProduct = false;
#endif
constexpr int64_t kManyRows = 24;  // enough to arrange weights for

// product[rows, kPanel] (+)= input * `depth` rows of a panel.
void multiply(int64_t rows, int64_t width, int64_t depth, const float* input, int64_t stride, const float* panel,
              float* product, bool accumulate) {
  if (!kOwnProduct) return gemm_tile(rows, width, depth, input, stride, panel, width, product, kPanel, accumulate);
  float* to = accumulate ? scratch(2, kRowTile * kPanel) : product;
  const Taps taps{input, stride, 0, 0, 1, 1, depth};
  if (rows < kManyRows) {
    multiply_run(rows, taps, panel, width, to, kPanel);
  } else {
    // The columns that the micro-kernel takes at once, side by side: 256 bytes apart they would share a quarter of L1.
    float* columns = scratch(3, depth * kLanes);
    for (int64_t j = 0; j < width; j += kLanes) {
      const int64_t lanes = min_of(kLanes, width - j);
      for (int64_t k = 0; k < depth; ++k) {
        const float* from = panel + k * width + j;
        lanes == kLanes ? store(columns + k * lanes, load(from)) : store(columns + k * lanes, load<Half>(from));
      }
      multiply_run(rows, taps, columns, lanes, to + j, kPanel);
    }
  }
  for (int64_t i = 0; accumulate && i < rows * kPanel; i += kLanes)
    store(product + i, load(product + i) + load(to + i));
}

// product[rows, kPanel] = input * panel in blocks of the depth. Weights that come from memory are fetched a block
// ahead; what lies behind a panel is the next one.
void multiply_blocks(int64_t rows, int64_t width, int64_t depth, const float* input, int64_t stride, const float* panel,
                     float* product, int64_t block, bool streamed) {
  for (int64_t k = 0; k == 0 || k < depth; k += block) {
    const int64_t some = min_of(block, depth - k);
    const float* weights = panel + k * width;
    for (int64_t i = 0; streamed && i < some * width; i += kLanes) {
      __builtin_prefetch(weights + block * width + i, 0, 2);
    }
    multiply(rows, width, some, input + k, stride, weights, product, k > 0);
  }
}

// Depth that is multiplied at once: all of it, unless weights come from memory, or a micro-kernel's weights are to stay
// in L1 for many rows.
int64_t block_of(const LinearParams& p, int64_t rows) {
  constexpr int64_t kFetched = 128, kInL1 = 256;
  if (p.streamed) return kFetched;
  return kOwnProduct && rows >= kManyRows ? kInL1 : max_of(1, p.depth);
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void linear_range(const LinearParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  const int64_t panels = panel_count(p.units);
  float* product = scratch(0, kRowTile * kPanel);
  float* gathered = p.input_indices == nullptr ? nullptr : scratch(1, p.row_tile * p.depth);
  int64_t gathered_tile = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / panels, panel = task % panels;
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
    multiply_blocks(rows, width, p.depth, input, input_stride, weight, product, block_of(p, rows), p.streamed);
    EpilogueTile t{};
    t.product = product;
    t.product_stride = kPanel;
    t.rows = rows;
    t.units = units;
    t.bias = p.bias == nullptr ? nullptr : p.bias + unit;
    t.output = p.output + row * p.units + unit;
    t.output_stride = p.units;
    t.usage = usage == nullptr ? nullptr : usage + unit;
    t.usage_stride = padded_units(p.units);
    epilogue(t, p.activation);
  }
  gemm_release();
}

}  // namespace dynprune::DYNPRUNE_ISA
