// What the CUDA kernels' launchers share with their callers. No CUDA header: csrc and the tests include it too.
#pragma once

#include <cstdint>

#include "../cpu/types.h"

struct CUstream_st;

namespace dynprune::cuda {

// What is multiplied, and how: float32 on tensor cores is either rounded to tf32, or split in three products of tf32
// parts, which together keep float32's accuracy. Sums are float32 always.
enum class Number : int32_t { bf16, f16, tf32, f32 };

static constexpr int element_bytes(Number n) { return n == Number::bf16 || n == Number::f16 ? 2 : 4; }

// Rows of packed weights begin at multiples of this, so that they can be copied in whole chunks.
constexpr int kChunkBytes = 16;
static constexpr int64_t padded_depth(int64_t depth, Number n) {
  const int64_t chunk = kChunkBytes / element_bytes(n);
  return (depth + chunk - 1) / chunk * chunk;
}

enum class TileShape : int32_t { flat, small, large };

// How a product is divided among blocks: a function of sizes that the host knows, so that a captured graph holds it.
struct ProductPlan {
  TileShape shape;
  int parts;  // into which the depth is split
  int64_t row_tiles, unit_tiles;
  // Parts of the workspace, in this order: counters of the split, which are zero before a launch and left so, its sums,
  // and the usage of each row tile.
  int64_t counter_bytes, split_bytes, usage_bytes;
  int64_t workspace() const { return counter_bytes + split_bytes + usage_bytes; }
};

typedef ::CUstream_st* Stream;  // cudaStream_t

// What launchers return: a cudaError_t, 0 for success. Errors of the kernels themselves come later, as CUDA has it.
typedef int Status;
constexpr Status kInvalidValue = 1;  // cudaErrorInvalidValue

}  // namespace dynprune::cuda
