// device.h on a host: every thread of a block is a fibre, and these functions, defined by the tests, switch between
// them. Only the tests build this.
#pragma once

#include <cmath>
#include <cstring>

#define DYNPRUNE_DEVICE inline
#define DYNPRUNE_HOST_DEVICE inline
#define DYNPRUNE_UNROLL
#define DYNPRUNE_NO_UNROLL

namespace dynprune::cuda {

struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

// The call's line tells apart where the lanes of a warp, or the threads of a block, have met.
int thread();
Position block();
char* shared();
void sync(int line = __builtin_LINE());
void sync_warp(int line = __builtin_LINE());
unsigned lane_votes(bool vote, int line = __builtin_LINE());
inline int ones(unsigned bits) { return __builtin_popcount(bits); }
void copy_async(void* to, const void* from, int bytes);
void commit_copies();
void wait_for_copies(int pending);
template <int kPending>
inline void wait_copies() {
  wait_for_copies(kPending);
}
void load_matrix(uint32_t (&r)[4], const void* row, int line = __builtin_LINE());
void multiply_as(Number number, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line);
template <Number number>
inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE()) {
  multiply_as(number, sum, a, b0, b1, line);
}

inline uint32_t float_bits(float x) {
  uint32_t r;
  std::memcpy(&r, &x, sizeof r);
  return r;
}
inline float bits_float(uint32_t x) {
  float r;
  std::memcpy(&r, &x, sizeof r);
  return r;
}
inline uint32_t to_tf32(float x) {
  const uint32_t bits = float_bits(x);
  return std::isfinite(x) ? (bits + 0x1000) & ~0x1fffu : bits;
}
uint16_t to_f16(float x);
float from_f16(uint16_t x);
inline uint16_t to_bf16(float x) {
  const uint32_t bits = float_bits(x);
  if (std::isnan(x)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t x) { return bits_float(static_cast<uint32_t>(x) << 16); }

unsigned increment(unsigned* counter);
inline Float4 load_fresh(const Float4* p) { return *p; }
void await(const unsigned* counter, unsigned target);

Status emulate(const Grid& grid, int threads, void (*body)(const void* params), const void* params);

template <class Kernel>
Status launch(const Grid& grid, const typename Kernel::Params& params, Stream) {
  auto body = [](const void* p) { Kernel::run(*static_cast<const typename Kernel::Params*>(p)); };
  return emulate(grid, Kernel::kThreads, body, &params);
}

}  // namespace dynprune::cuda
