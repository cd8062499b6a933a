// Products in the tile registers: some tiles of rows times some of columns, summed over the depth.
#pragma once

#include "tiles.h"

#if defined(DYNPRUNE_TILES)

namespace dynprune::DYNPRUNE_ISA {

constexpr int kTileDepth = kTileBytes / sizeof(uint16_t);

// body(Constant<0>), body(Constant<1>), ...
template <int count, int from = 0, typename Body>
inline void unrolled(const Body& body) {
  if constexpr (from < count) {
    body(Constant<from>{});
    unrolled<count, from + 1>(body);
  }
}

// How what is multiplied lies in memory; in values, floats for the product.
struct TileStrides {
  int64_t input;   // from row to row
  int64_t column;  // of weights, from one tile of columns to the next
  int64_t product;
};

// product[kRows, kColumns] in tiles, or what is added to it if the sums are `continued`. steps(step) calls step(input,
// weight, weight_stride) for each kTileDepth of the depth: the first of the rows, [kTileDepth / 2][16][2] weights of
// the first tile of columns, and the values between their rows.
template <int kRows, int kColumns, typename Steps>
void tile_block(const TileStrides& strides, bool continued, float* product, const Steps& steps) {
  // Four sums; the rest is for inputs and weights, in turn for whichever there are more of.
  constexpr int kSums = 4, kInputs = kRows == 1 ? 1 : kColumns == 1 ? 3 : 2, kWeights = kTiles - kSums - kInputs;
  static_assert(kRows * kColumns <= kSums);
  const auto sums = [&](const auto& body) {
    unrolled<kRows>([&](auto i) {
      unrolled<kColumns>([&](auto j) {
        constexpr int kRow = decltype(i)::value, kColumn = decltype(j)::value;
        float* at = product + kRow * kTileRows * strides.product + kColumn * kTileRows;
        body(Constant<kRow * kColumns + kColumn>{}, at);
      });
    });
  };
  const int64_t product_stride = strides.product * static_cast<int64_t>(sizeof(float));
  if (continued) {
    sums([&](auto sum, float* at) { tile_load<decltype(sum)::value>(at, product_stride); });
  } else {
    sums([&](auto sum, float*) { tile_zero<decltype(sum)::value>(); });
  }
  steps([&](const uint16_t* input, const uint16_t* weight, int64_t weight_stride) {
    unrolled<kRows>([&](auto i) {
      constexpr int kRow = decltype(i)::value, kInput = kSums + kRow % kInputs;
      tile_load<kInput>(input + kRow * kTileRows * strides.input, strides.input * 2);
      unrolled<kColumns>([&](auto j) {
        constexpr int kColumn = decltype(j)::value, kWeight = kSums + kInputs + kColumn % kWeights;
        if constexpr (kRow == 0) tile_load<kWeight>(weight + kColumn * strides.column, weight_stride * 2);
        tile_multiply<kRow * kColumns + kColumn, kInput, kWeight>();
      });
    });
  });
  sums([&](auto sum, float* at) { tile_store<decltype(sum)::value>(at, product_stride); });
}

// `row_blocks` tiles of rows times kColumns of columns. steps(row, step): as above, from row `row` on.
template <int kColumns, typename Steps>
void tile_rows(int64_t row_blocks, const TileStrides& strides, bool continued, float* product, const Steps& steps) {
  constexpr int kMost = 4 / kColumns;
  const auto run = [&](auto rows, int64_t block) {
    const int64_t row = block * kTileRows;
    tile_block<decltype(rows)::value, kColumns>(strides, continued, product + row * strides.product,
                                                [&](const auto& step) { steps(row, step); });
  };
  int64_t block = 0;
  for (; block + kMost <= row_blocks; block += kMost) run(Constant<kMost>{}, block);
  if constexpr (kMost == 4) {
    if (row_blocks - block == 3) return run(Constant<3>{}, block);
    if (row_blocks - block == 2) return run(Constant<2>{}, block);
  }
  if constexpr (kMost > 1) {
    if (block < row_blocks) run(Constant<1>{}, block);
  }
}

}  // namespace dynprune::DYNPRUNE_ISA

#endif
