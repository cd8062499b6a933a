// The tile registers of AMX: eight tiles of sixteen rows of 64 bytes. In the C++ tests they are memory, and every CPU
// runs what is written for them, under the sanitizers.
#pragma once

#include "simd.h"

#if defined(DYNPRUNE_TILES)

namespace dynprune::DYNPRUNE_ISA {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;
constexpr int kTiles = 8;

// Strides are in bytes. Tiles are named by constants: they are part of the instructions.
#if !defined(DYNPRUNE_EMULATE_TILES)

// While it lives this thread's tiles can be used, all of them whole. Select.cpp has asked the system for them.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < kTiles; ++i) {
      shape.row_bytes[i] = kTileBytes;
      shape.rows[i] = kTileRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~TileRegisters() { asm volatile("tilerelease"); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

template <int tile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}

template <int tile>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
}

template <int tile>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
}

// sum[16, 16] += input[16, 16 pairs] * weight[16 pairs, 16]: pairs of bfloat16, sums in float32.
template <int sum, int input, int weight>
inline void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(input), "i"(weight));
}

#else

typedef uint8_t Tile[kTileRows][kTileBytes];
inline thread_local Tile tiles[kTiles];

// Between a release and the next configuration a load would be an invalid instruction.
class TileRegisters {
 public:
  TileRegisters() { std::memset(tiles, 0, sizeof(tiles)); }
  ~TileRegisters() { std::memset(tiles, 0xff, sizeof(tiles)); }
};

template <int tile>
void tile_zero() {
  std::memset(tiles[tile], 0, sizeof(Tile));
}

template <int tile>
void tile_load(const void* from, int64_t stride) {
  for (int i = 0; i < kTileRows; ++i) {
    std::memcpy(tiles[tile][i], static_cast<const char*>(from) + i * stride, kTileBytes);
  }
}

template <int tile>
void tile_store(void* to, int64_t stride) {
  for (int i = 0; i < kTileRows; ++i) std::memcpy(static_cast<char*>(to) + i * stride, tiles[tile][i], kTileBytes);
}

template <int sum, int input, int weight>
void tile_multiply() {
  constexpr int kValues = kTileBytes / sizeof(uint16_t);
  float sums[kTileRows][kTileBytes / sizeof(float)];
  uint16_t a[kTileRows][kValues], b[kTileRows][kValues];
  std::memcpy(sums, tiles[sum], sizeof(sums));
  std::memcpy(a, tiles[input], sizeof(a));
  std::memcpy(b, tiles[weight], sizeof(b));
  for (int i = 0; i < kTileRows; ++i) {
    for (int k = 0; k < kValues; ++k) {
      for (int j = 0; j < kTileRows; ++j) sums[i][j] += widen(a[i][k]) * widen(b[k / 2][2 * j + k % 2]);
    }
  }
  std::memcpy(tiles[sum], sums, sizeof(sums));
}

#endif

}  // namespace dynprune::DYNPRUNE_ISA

#endif
