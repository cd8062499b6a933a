// One register of floats. Loops that keep many values in registers are written in these and not in 16 lanes: GCC keeps
// arrays of vectors wider than a register in memory.
#pragma once

#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

#if defined(__AVX512F__)
typedef Floats Register;
#elif defined(__AVX2__)
typedef Half Register;
#else
typedef float Register __attribute__((vector_size(16)));
#endif
constexpr int kRegisterLanes = sizeof(Register) / sizeof(float);

inline Register load_register(const float* p) {
  typedef Register Unaligned __attribute__((aligned(4), may_alias));
  return *reinterpret_cast<const Unaligned*>(p);
}
inline void store_register(float* p, Register v) {
  typedef Register Unaligned __attribute__((aligned(4), may_alias));
  *reinterpret_cast<Unaligned*>(p) = v;
}

// Has the compiler load `v` once, for all its uses: it would rather give each instruction an operand in memory.
inline void keep_in_register([[maybe_unused]] Register& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#endif
}

// The first `lanes` lanes, at least 1; the others are zero.
inline Register load_register_part(const float* p, int64_t lanes) {
#if defined(__AVX512F__)
  return load_part(p, lanes);
#else
  Register v{};
  for (int64_t i = 0; i < kRegisterLanes; ++i) {
    if (i < lanes) v[i] = p[i];
  }
  return v;
#endif
}

}  // namespace dynprune::DYNPRUNE_ISA
