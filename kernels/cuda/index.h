// Index arithmetic of the kernels, apart so that it can be tested by itself.
#pragma once

#include "device.h"

namespace dynprune::cuda {

// Operands lie in shared memory in slabs: [rows][kSlabChunks] chunks of 16 bytes.
constexpr int kSlabChunks = 8;
constexpr int kSlabBytes = kSlabChunks * kChunkBytes;

// Byte of a chunk in a slab. Chunks of a row are exchanged by its number, so that the same chunk of eight rows, which
// is what load_matrix reads, lies in eight different groups of banks.
DYNPRUNE_HOST_DEVICE int swizzled(int row, int chunk) {
  return row * kSlabBytes + ((chunk ^ (row & (kSlabChunks - 1))) * kChunkBytes);
}

// What lane `lane` names for load_matrix so that it gets operand a of a product: 16 rows, 32 bytes from chunk `chunk`.
DYNPRUNE_HOST_DEVICE int operand_a(int lane, int row, int chunk) {
  return swizzled(row + (lane & 15), chunk + (lane >> 4));
}
// Likewise operands b of two products that lie side by side: 16 units.
DYNPRUNE_HOST_DEVICE int operand_b(int lane, int unit, int chunk) {
  return swizzled(unit + (lane & 7) + (lane >> 4) * 8, chunk + ((lane >> 3) & 1));
}

// The depth of a convolution goes by taps, each of whole chunks.
struct TapChunk {
  int tap, chunk;
};
DYNPRUNE_HOST_DEVICE TapChunk tap_chunk(int k, int chunks_per_tap) {
  const int tap = k / chunks_per_tap;
  return {tap, k - tap * chunks_per_tap};
}

// Part `part` of `parts` of `slabs`: [part_begin(part), part_begin(part + 1)).
DYNPRUNE_HOST_DEVICE int part_begin(int part, int parts, int slabs) {
  return static_cast<int>(static_cast<int64_t>(slabs) * part / parts);
}

DYNPRUNE_HOST_DEVICE int at_most(int most, int64_t n) { return n < most ? static_cast<int>(n) : most; }
DYNPRUNE_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace dynprune::cuda
