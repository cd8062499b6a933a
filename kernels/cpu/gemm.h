// The small dense product under every kernel. Declared here without a torch header, defined by whoever links the
// kernels (csrc/gemm.cpp on ATen's brgemm or BLAS; the C++ tests with a plain loop).
#pragma once

#include <cstdint>

namespace dynprune {

// c[m, n] (+)= a[m, k] * b[k, n]; row-major with the given leading dimensions. n is a multiple of kUnitAlign up to
// kPanel. c does not alias a or b.
void gemm_tile(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool accumulate);

// The same in bfloat16, with float32 sums: b is [k / 2][n][2] (see types.h), k is even, c [m, kPanel]. False, with
// nothing done, where this CPU has no such product or multiplies so many rows faster in float32.
bool gemm_tile_bf16(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, float* c,
                    bool accumulate);

// Called once by a thread at the end of its share of a kernel.
void gemm_release();

}  // namespace dynprune
