// The product at the bottom of linear, conv2d and lstm: a block's tile of rows times units, by tensor cores, from slabs
// of both operands that are copied to shared memory ahead of their use.
#pragma once

#include "tile.h"

namespace dynprune::cuda {

// A chunk of an operand in global memory: `bytes` of 16 that are there, the others count as zero.
struct Chunk {
  const char* at;
  int bytes;
};

DYNPRUNE_DEVICE int present(int64_t bytes_left) {
  return bytes_left >= kChunkBytes ? kChunkBytes : bytes_left < 0 ? 0 : static_cast<int>(bytes_left);
}

// Whether all rows of a matrix begin at multiples of a chunk.
DYNPRUNE_DEVICE bool is_aligned(const void* p, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(p) % kChunkBytes == 0 && stride_bytes % kChunkBytes == 0;
}

// How many there are, of `most`: known to the host, or to the device alone.
DYNPRUNE_DEVICE int64_t counted(int64_t most, const int* count) {
  return count == nullptr || *count > most ? most : *count;
}

// Rows of a matrix, `kCount` of them for this thread. `row` is null past the last.
template <int kCount>
struct MatrixRows {
  const char* any;  // an address to name where nothing is read
  const char* row[kCount];
  int64_t bytes;  // of each row
  bool aligned;   // rows begin at multiples of 16 bytes

  DYNPRUNE_DEVICE Chunk chunk(int i, int k) const {
    const int64_t at = static_cast<int64_t>(k) * kChunkBytes;
    const int bytes_here = row[i] == nullptr ? 0 : present(bytes - at);
    return {bytes_here > 0 ? row[i] + at : any, bytes_here};
  }
};

template <int kElementBytes>
DYNPRUNE_DEVICE void copy_chunk(char* to, const Chunk& from, bool aligned) {
  if (aligned) {
    copy_async(to, from.at, from.bytes);
    return;
  }
  uint32_t words[4] = {0, 0, 0, 0};
  DYNPRUNE_UNROLL
  for (int i = 0; i < kChunkBytes / kElementBytes; ++i) {
    if (i * kElementBytes >= from.bytes) continue;
    if (kElementBytes == 2) {
      words[i / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(from.at)[i]) << (i % 2 * 16);
    } else {
      words[i] = reinterpret_cast<const uint32_t*>(from.at)[i];
    }
  }
  DYNPRUNE_UNROLL
  for (int i = 0; i < 4; ++i) reinterpret_cast<uint32_t*>(to)[i] = words[i];
}

// Copies slab `slab` of kCopies * kThreads / kSlabChunks rows to shared memory.
template <int kThreads, int kCopies, int kElementBytes, class Source>
DYNPRUNE_DEVICE void copy_slab(char* to, const Source& source, int slab) {
  const int chunk = thread() % kSlabChunks, first = thread() / kSlabChunks;
  DYNPRUNE_UNROLL
  for (int i = 0; i < kCopies; ++i) {
    const int row = first + i * (kThreads / kSlabChunks);
    copy_chunk<kElementBytes>(to + swizzled(row, chunk), source.chunk(i, slab * kSlabChunks + chunk), source.aligned);
  }
}

// float32 as two tf32 numbers that add up to it, but for its last bits.
struct Split {
  uint32_t large, small;
};
DYNPRUNE_DEVICE Split split(uint32_t bits) {
  const float x = bits_float(bits);
  const uint32_t large = to_tf32(x);
  return {large, to_tf32(x - bits_float(large))};
}

// sum += a * b, one 16 x 8 product as `number` has it; operands as load_matrix gave them.
template <Number number>
DYNPRUNE_DEVICE void multiply_step(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (number == Number::tf32) {
    const uint32_t rounded[4] = {to_tf32(bits_float(a[0])), to_tf32(bits_float(a[1])), to_tf32(bits_float(a[2])),
                                 to_tf32(bits_float(a[3]))};
    multiply<number>(sum, rounded, to_tf32(bits_float(b0)), to_tf32(bits_float(b1)));
  } else if constexpr (number == Number::f32) {
    const Split s0 = split(a[0]), s1 = split(a[1]), s2 = split(a[2]), s3 = split(a[3]);
    const uint32_t large[4] = {s0.large, s1.large, s2.large, s3.large};
    const uint32_t small[4] = {s0.small, s1.small, s2.small, s3.small};
    const Split t0 = split(b0), t1 = split(b1);
    multiply<number>(sum, small, t0.large, t1.large);
    multiply<number>(sum, large, t0.small, t1.small);
    multiply<number>(sum, large, t0.large, t1.large);
  } else {
    multiply<number>(sum, a, b0, b1);
  }
}

template <class T>
using Sums = float[T::kSumRows][T::kSumUnits][4];

template <class T>
DYNPRUNE_DEVICE void clear(Sums<T>& sums) {
  DYNPRUNE_UNROLL
  for (int i = 0; i < T::kSumRows; ++i) {
    DYNPRUNE_UNROLL
    for (int j = 0; j < T::kSumUnits; ++j) {
      DYNPRUNE_UNROLL
      for (int k = 0; k < 4; ++k) sums[i][j][k] = 0.f;
    }
  }
}

// Where a warp's part of the tile begins.
template <class T>
DYNPRUNE_DEVICE int warp_row() {
  return thread() / 32 / (T::kUnits / T::kWarpUnits) * T::kWarpRows;
}
template <class T>
DYNPRUNE_DEVICE int warp_unit() {
  return thread() / 32 % (T::kUnits / T::kWarpUnits) * T::kWarpUnits;
}

// sums += the product of one slab of both operands.
template <class T, Number number>
DYNPRUNE_DEVICE void multiply_slab(Sums<T>& sums, const char* rows, const char* units) {
  const int lane = thread() % 32, row = warp_row<T>(), unit = warp_unit<T>();
  DYNPRUNE_UNROLL
  for (int chunk = 0; chunk < kSlabChunks; chunk += 2) {
    uint32_t a[T::kSumRows][4];
    DYNPRUNE_UNROLL
    for (int i = 0; i < T::kSumRows; ++i) load_matrix(a[i], rows + operand_a(lane, row + i * 16, chunk));
    DYNPRUNE_UNROLL
    for (int j = 0; j < T::kSumUnits / 2; ++j) {
      uint32_t b[4];
      load_matrix(b, units + operand_b(lane, unit + j * 16, chunk));
      DYNPRUNE_UNROLL
      for (int i = 0; i < T::kSumRows; ++i) {
        multiply_step<number>(sums[i][2 * j], a[i], b[0], b[1]);
        multiply_step<number>(sums[i][2 * j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// sums = the product of slabs [begin, end). Afterwards shared memory is free for other things.
template <class T, Number number, class RowSource, class UnitSource>
DYNPRUNE_DEVICE void multiply_slabs(Sums<T>& sums, const RowSource& rows, const UnitSource& units, int begin, int end) {
  constexpr int kBytes = element_bytes(number);
  char* const stages = shared();
  auto copy_stage = [&](int slab) {
    char* const to = stages + (slab - begin) % T::kStages * T::kStageBytes;
    copy_slab<T::kThreads, T::kRowCopies, kBytes>(to, rows, slab);
    copy_slab<T::kThreads, T::kUnitCopies, kBytes>(to + T::kRows * kSlabBytes, units, slab);
  };
  clear<T>(sums);
  DYNPRUNE_NO_UNROLL
  for (int ahead = 0; ahead < T::kStages - 1; ++ahead) {
    if (begin + ahead < end) copy_stage(begin + ahead);
    commit_copies();  // an empty group where there is no slab, so that the count of groups is that of slabs
  }
  DYNPRUNE_NO_UNROLL
  for (int slab = begin; slab < end; ++slab) {
    wait_copies<T::kStages - 2>();
    sync();  // everybody's part of this slab is here, and nobody reads the one before, whose place the next copy takes
    const int next = slab + T::kStages - 1;
    if (next < end) copy_stage(next);
    commit_copies();
    const char* const stage = stages + (slab - begin) % T::kStages * T::kStageBytes;
    multiply_slab<T, number>(sums, stage, stage + T::kRows * kSlabBytes);
  }
  wait_copies<0>();
  sync();
}

// Lays the sums out in shared memory, [kRows][kProductStride], for everybody to read.
template <class T>
DYNPRUNE_DEVICE void share_product(const Sums<T>& sums, float* product) {
  const int lane = thread() % 32, row = warp_row<T>() + lane / 4, unit = warp_unit<T>() + lane % 4 * 2;
  DYNPRUNE_UNROLL
  for (int i = 0; i < T::kSumRows; ++i) {
    DYNPRUNE_UNROLL
    for (int j = 0; j < T::kSumUnits; ++j) {
      float* const at = product + (row + i * 16) * T::kProductStride + unit + j * 8;
      *reinterpret_cast<Float2*>(at) = {sums[i][j][0], sums[i][j][1]};
      *reinterpret_cast<Float2*>(at + 8 * T::kProductStride) = {sums[i][j][2], sums[i][j][3]};
    }
  }
  sync();
}

// Where several blocks share the depth of one tile.
struct SplitDepth {
  int parts;           // of the depth
  float* sums;         // [tiles, parts, kRows, kUnits] of the tile's shape; unused for one part
  unsigned* finished;  // [tiles], zero before and after
};

// Adds up the parts' products in shared memory. True for the block that came last, which has them all; the order of
// the sum does not depend on which that is.
template <class T>
DYNPRUNE_DEVICE bool gather_parts(const SplitDepth& s, int64_t tile, int part) {
  if (s.parts == 1) return true;
  constexpr int kSize = T::kRows * T::kUnits;
  float* const product = reinterpret_cast<float*>(shared());
  unsigned* const place = reinterpret_cast<unsigned*>(shared() + T::kSharedBytes - 16);
  float* const parts = s.sums + tile * s.parts * kSize;
  auto quad = [&](int i) {
    return reinterpret_cast<Float4*>(product + i / T::kUnits * T::kProductStride + i % T::kUnits);
  };
  DYNPRUNE_NO_UNROLL
  for (int i = 4 * thread(); i < kSize; i += 4 * T::kThreads) {
    *reinterpret_cast<Float4*>(parts + static_cast<int64_t>(part) * kSize + i) = *quad(i);
  }
  sync();
  if (thread() == 0) *place = increment(s.finished + tile);
  sync();
  if (*place != static_cast<unsigned>(s.parts - 1)) return false;
  DYNPRUNE_NO_UNROLL
  for (int i = 4 * thread(); i < kSize; i += 4 * T::kThreads) {
    // Whole vectors, several under way at once: each takes as long to come as a slab takes to multiply.
    constexpr int kAhead = 4;
    Float4 sum{};
    DYNPRUNE_NO_UNROLL
    for (int from = 0; from < s.parts; from += kAhead) {
      Float4 v[kAhead];
      DYNPRUNE_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        const int64_t at = static_cast<int64_t>(from + j) * kSize + i;
        v[j] = from + j < s.parts ? load_fresh(reinterpret_cast<const Float4*>(parts + at)) : Float4{};
      }
      DYNPRUNE_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        sum.x += v[j].x;
        sum.y += v[j].y;
        sum.z += v[j].z;
        sum.w += v[j].w;
      }
    }
    *quad(i) = sum;
  }
  if (thread() == 0) s.finished[tile] = 0;
  sync();
  return true;
}

}  // namespace dynprune::cuda
