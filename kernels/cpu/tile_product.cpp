// ProductBf16 on the tiles of AMX.
#include "product_bf16.h"

#if defined(DYNPRUNE_TILES)

#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

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

}  // namespace dynprune::DYNPRUNE_ISA

#endif
