// The product of some rows with a panel of weights, in bfloat16 with float32 sums: on the tiles of AMX, by the CPU's
// own product of pairs (gemm.h), or widened to float32.
#pragma once

#include "tile_block.h"
#include "types.h"

namespace dynprune::DYNPRUNE_ISA {

// What is multiplied is read in whole blocks: so many rows, of which those behind the last may hold anything, and so
// much of the depth, where what lies behind the end is zero.
#if defined(DYNPRUNE_TILES)
constexpr int64_t kRowBlock = kTileRows, kDepthBlock = kTileDepth;
#else
constexpr int64_t kRowBlock = 1, kDepthBlock = 1;
#endif

// Lives for a range of a kernel, on one thread. Takes scratch slots 2 to 6.
class ProductBf16 {
 public:
  ProductBf16() {}
  ~ProductBf16();
  ProductBf16(const ProductBf16&) = delete;
  ProductBf16& operator=(const ProductBf16&) = delete;

  // product[rows, kPanel] = input[rows, depth] * panel[depth, width]; the product has room for whole blocks of rows, up
  // to kRowTile, and columns behind the width hold anything. `stride`: of the input, in values.
  void multiply(int64_t rows, int64_t width, int64_t depth, const uint16_t* input, int64_t stride,
                const uint16_t* panel, float* product);

#if defined(DYNPRUNE_TILES)
 private:
  TileRegisters registers_;
  const uint16_t* ending_of_ = nullptr;  // the panel whose last block of the depth lies in scratch
#endif
};

}  // namespace dynprune::DYNPRUNE_ISA
