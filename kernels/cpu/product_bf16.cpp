#include "product_bf16.h"

#include "gemm.h"
#include "product.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

#if defined(DYNPRUNE_TILES)

namespace {

// A panel's weights: `whole` of the depth is read where it lies, the rest from a copy, [rest / 2][kPanel][2].
struct Weights {
  const uint16_t* panel;
  int64_t width, whole, rest;
  const uint16_t* ending;
};

// Of the depth at a time: the weights of a panel, and the inputs of a tile of rows, stay in L1.
constexpr int64_t kRun = 6 * kTileDepth;

// The rows times kColumns tiles of columns from column `unit` on, over a run of the depth from `first` on.
template <int kColumns>
void multiply_columns(int64_t row_blocks, const uint16_t* input, int64_t stride, const Weights& w, int64_t first,
                      int64_t unit, float* product) {
  const TileStrides strides{stride, 2 * kTileRows, kPanel};
  const int64_t end = first + kRun;
  tile_rows<kColumns>(row_blocks, strides, first > 0, product + unit, [&](int64_t row, const auto& step) {
    const uint16_t* from = input + row * stride;
    int64_t k = first;
    for (; k < min_of(w.whole, end); k += kTileDepth) step(from + k, w.panel + k * w.width + 2 * unit, 2 * w.width);
    for (; k < end && k < w.whole + w.rest; k += kTileDepth) {
      step(from + k, w.ending + (k - w.whole) * kPanel + 2 * unit, 2 * kPanel);
    }
  });
}

constexpr int64_t kMostRest = 2 * kTileDepth;

// The end of a panel's depth with zeros behind it, [kMostRest / 2][kPanel][2].
void copy_ending(const uint16_t* from, int64_t depth, int64_t width, uint16_t* to) {
  std::memset(to, 0, kMostRest * kPanel * sizeof(uint16_t));
  for (; depth > 1; depth -= 2, from += 2 * width, to += 2 * kPanel) {
    std::memcpy(to, from, static_cast<size_t>(2 * width) * sizeof(uint16_t));
  }
  for (int64_t j = 0; depth == 1 && j < width; ++j) to[2 * j] = from[j];
}

}  // namespace

ProductBf16::~ProductBf16() {}

void ProductBf16::multiply(int64_t rows, int64_t width, int64_t depth, const uint16_t* input, int64_t stride,
                           const uint16_t* panel, float* product) {
  Weights w{panel, width, depth / kTileDepth * kTileDepth, 0, nullptr};
  // Half a tile of columns is read as a whole one, into the next row. Behind the last there may be nothing.
  if (width % kTileRows != 0) w.whole = max_of(0, depth - 2) / kTileDepth * kTileDepth;
  w.rest = depth - w.whole;
  if (w.rest > 0) {
    uint16_t* ending = reinterpret_cast<uint16_t*>(scratch(5, kMostRest * kPanel / 2));
    if (ending_of_ != panel) copy_ending(panel + w.whole * width, w.rest, width, ending);
    ending_of_ = panel;
    w.ending = ending;
  }
  const int64_t row_blocks = (rows + kTileRows - 1) / kTileRows, columns = (width + kTileRows - 1) / kTileRows;
  for (int64_t first = 0; first == 0 || first < depth; first += kRun) {
    if (row_blocks == 1 && columns > 2) {
      const auto run = columns == 4 ? multiply_columns<4> : multiply_columns<3>;
      run(row_blocks, input, stride, w, first, 0, product);
      continue;
    }
    for (int64_t unit = 0; unit < width; unit += 2 * kTileRows) {
      const auto run = width - unit > kTileRows ? multiply_columns<2> : multiply_columns<1>;
      run(row_blocks, input, stride, w, first, unit, product);
    }
  }
}

#else

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

#endif

}  // namespace dynprune::DYNPRUNE_ISA
