// Sixteen vectors of sixteen lanes, rows for columns.
#pragma once

#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

// v[i][j] and v[j][i] change places. A call would take all of them through memory.
__attribute__((always_inline)) inline void transpose(Floats (&v)[kLanes]) {
#if defined(__AVX512F__)
  // At each step halves, quarters, ... of pairs of rows.
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    Ints low, high;
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      low[j] = j & step ? kLanes + j - step : j;
      high[j] = j & step ? kLanes + j : j + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & step) continue;
      const Floats a = v[i], b = v[i + step];
      v[i] = _mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(low), b);
      v[i + step] = _mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(high), b);
    }
  }
#else
  float all[kLanes][kLanes], column[kLanes];
  for (int i = 0; i < kLanes; ++i) store(all[i], v[i]);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) column[j] = all[j][i];
    v[i] = load(column);
  }
#endif
}

}  // namespace dynprune::DYNPRUNE_ISA
