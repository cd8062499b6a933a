#include "product.h"

#include "gemm.h"
#include "microkernel.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// Rows up to which the micro-kernel is the faster one. ATen has a product of single tiles for AVX-512 only, and a call
// of BLAS for each costs more than few rows take: on AVX2 the micro-kernel does all of it.
#if defined(__AVX512F__)
constexpr int64_t kOwnRows = 8;
#elif defined(__AVX2__)
constexpr int64_t kOwnRows = kRowTile;
#else
constexpr int64_t kOwnRows = 0;
#endif
constexpr int64_t kManyRows = 24;  // enough to arrange weights for

}  // namespace

void multiply_panel(int64_t rows, int64_t width, int64_t depth, const float* input, int64_t stride, const float* panel,
                    float* product, bool accumulate) {
  if (rows > kOwnRows) return gemm_tile(rows, width, depth, input, stride, panel, width, product, kPanel, accumulate);
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

int64_t panel_block(int64_t rows, int64_t depth) {
  constexpr int64_t kInL1 = 256;  // a micro-kernel's weights stay there for many rows
  return rows <= kOwnRows && rows >= kManyRows ? kInL1 : max_of(1, depth);
}

bool fetches_ahead(int64_t rows) { return kRowsAhead > 0 && rows <= kOwnRows; }

}  // namespace dynprune::DYNPRUNE_ISA
