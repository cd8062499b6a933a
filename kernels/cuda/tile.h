// The tiles that a block computes. Why these: docs/design.md.
#pragma once

#include "index.h"

namespace dynprune::cuda {

template <int rows, int units, int warp_rows, int warp_units, int stages, int blocks>
struct Tile {
  static constexpr int kRows = rows, kUnits = units;                    // of a block
  static constexpr int kWarpRows = warp_rows, kWarpUnits = warp_units;  // of a warp
  static constexpr int kThreads = rows / warp_rows * (units / warp_units) * 32;
  static constexpr int kBlocks = blocks;  // on a multiprocessor at once, which bounds the registers
  static constexpr int kStages = stages;  // slabs on their way or in use
  static constexpr int kStageBytes = (rows + units) * kSlabBytes;
  // The product, float32, takes the place of the slabs. Rows are padded so that eight of them start in different banks.
  static constexpr int kProductStride = units + 8;
  static constexpr int kProductBytes = rows * kProductStride * 4;
  static constexpr int kPipelineBytes = stages * kStageBytes;
  static constexpr int kScratchBytes = kPipelineBytes > kProductBytes ? kPipelineBytes : kProductBytes;
  static constexpr int kSharedBytes = kScratchBytes + rows * 4 + 16;  // then the rows' zones, and one word for all

  // Chunks of each slab that a thread copies.
  static constexpr int kRowCopies = rows * kSlabChunks / kThreads, kUnitCopies = units * kSlabChunks / kThreads;
  static_assert(kRowCopies * kThreads == rows * kSlabChunks && kUnitCopies * kThreads == units * kSlabChunks);

  // Sums of a thread: [kSumRows][kSumUnits] of 16 x 8 products.
  static constexpr int kSumRows = warp_rows / 16, kSumUnits = warp_units / 8;
  static_assert(kSumRows * 16 == warp_rows && kSumUnits * 8 == warp_units && kSumUnits % 2 == 0);
};

using LargeTile = Tile<128, 128, 64, 32, 3, 1>;
using SmallTile = Tile<64, 64, 32, 32, 4, 2>;
using FlatTile = Tile<16, 64, 16, 16, 5, 3>;

}  // namespace dynprune::cuda
