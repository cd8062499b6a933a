// ProductBf16 without tiles.
#include "product_bf16.h"

#if !defined(DYNPRUNE_TILES)

#include "gemm.h"
#include "product.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// Two rows of a panel, side by side, to one behind the other in float32.
void widen_pair(const uint16_t* pair, int64_t width, float* to) {
  for (int64_t j = 0; j < width; ++j) {
    uint32_t both;
    std::memcpy(&both, pair + 2 * j, sizeof(both));
    to[j] = widen(static_cast<uint16_t>(both));
    to[width + j] = widen(static_cast<uint16_t>(both >> 16));
  }
}

void widen_row(const uint16_t* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen(from[i]);
}

// In float32, block by block of the depth, which is even.
void multiply_widened(int64_t rows, int64_t width, int64_t depth, const uint16_t* input, int64_t stride,
                      const uint16_t* panel, float* product) {
  constexpr int64_t kBlock = 128;
  float* wide_input = scratch(4, kRowTile * kBlock);
  float* wide_panel = scratch(5, kBlock * kPanel);
  for (int64_t k = 0; k == 0 || k < depth; k += kBlock) {
    const int64_t some = min_of(kBlock, depth - k);
    for (int64_t r = 0; r < rows; ++r) widen_row(input + r * stride + k, some, wide_input + r * some);
    for (int64_t i = 0; i < some; i += 2) widen_pair(panel + (k + i) * width, width, wide_panel + i * width);
    multiply_panel(rows, width, some, wide_input, some, wide_panel, product, k > 0);
  }
}

}  // namespace

ProductBf16::~ProductBf16() { gemm_release(); }

void ProductBf16::multiply(int64_t rows, int64_t width, int64_t depth, const uint16_t* input, int64_t stride,
                           const uint16_t* panel, float* product) {
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

}  // namespace dynprune::DYNPRUNE_ISA

#endif
