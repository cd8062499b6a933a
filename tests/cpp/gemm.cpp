#include "cpu/gemm.h"

#include "check.h"

// The contract of cpu/gemm.h, to the letter: nothing beyond [m, n] is written, c is not read unless accumulating.
namespace dynprune {

void gemm_tile(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool accumulate) {
  if (m < 1 || m > kRowTile || n < 1 || n > kPanel || n % kUnitAlign != 0 || ldb < n || ldc < n) {
    expect(false, "gemm_tile: sizes within its contract");
  }
  unreleased = true;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = accumulate ? c[i * ldc + j] : 0.f;
      for (int64_t l = 0; l < k; ++l) sum += a[i * lda + l] * b[l * ldb + j];
      c[i * ldc + j] = sum;
    }
  }
}

// The kernels' own way, in float32, is what is tested here.
bool gemm_tile_bf16(int64_t, int64_t, int64_t, const uint16_t*, int64_t, const uint16_t*, float*, bool) {
  return false;
}

void gemm_release() { unreleased = false; }

}  // namespace dynprune
