// The dense product under the kernels, on internal ATen API: the one file that follows PyTorch when it changes.
#include "gemm.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/CPUBlas.h>

#include <limits>

#include "cpu/gemm.h"
#include "run.h"

namespace dynprune {

namespace {

#if defined(CPUBLAS_BRGEMM_F32F32F32) || defined(CPUBLAS_BRGEMM_BF16BF16F32)
// Whether ATen's brgemm takes operands of this type; it throws where it does not.
template <typename T>
bool takes_operands(bool in_pairs) {
  try {
    alignas(64) T a[16 * 16] = {}, b[16 * 16] = {};
    alignas(64) float c[16 * 16] = {};
    at::native::cpublas::brgemm(16, 16, 16, 16, 16, 16, false, a, b, c, in_pairs);
    at::native::cpublas::brgemm_release(in_pairs);
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}
#endif

bool probe_brgemm() {
#ifdef CPUBLAS_BRGEMM_F32F32F32
  // ATen offers brgemm on AVX-512 only; other kernels are run with BLAS, as they would be on an older CPU.
  return on_avx512() && takes_operands<float>(false);
#else
  return false;
#endif
}

void blas(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
          int64_t ldc, bool accumulate) {
  at::AutoDispatchBelowADInplaceOrView below;
  auto view = [](const float* p, int64_t rows, int64_t columns, int64_t stride) {
    return at::from_blob(const_cast<float*>(p), {rows, columns}, {stride, 1}, at::kFloat);
  };
  at::Tensor out = view(c, m, n, ldc);
  at::addmm_out(out, out, view(a, m, k, lda), view(b, k, n, ldb), accumulate ? 1 : 0);
}

// In software it would be slower than the float32 product, so the CPU's own instructions are asked for as well. Kernels
// with tiles of their own do without.
bool probe_brgemm_bf16() {
#if defined(CPUBLAS_BRGEMM_BF16BF16F32) && defined(__x86_64__)
  const bool instructions = std::string(kernels().isa) == "avx512" && __builtin_cpu_supports("avx512bf16");
  return instructions && takes_operands<at::BFloat16>(true);
#else
  return false;
#endif
}

bool has_brgemm_bf16() {
  static const bool available = probe_brgemm_bf16();
  return available;
}

// Rows from which float32 is faster than the product in bfloat16. Intel's AVX512_BF16 multiplies half as many numbers a
// cycle as float32 does, and wins while it is the weights' bytes that take the time; AMD's multiplies twice as many.
int64_t rows_for_float32() {
#ifdef __x86_64__
  constexpr int64_t kManyRows = 16;
  if (__builtin_cpu_is("intel")) return kManyRows;
#endif
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

bool has_brgemm() {
  static const bool available = probe_brgemm();
  return available;
}

bool multiplies_bf16() { return std::string(kernels().isa) == "amx" || has_brgemm_bf16(); }

void gemm_tile(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool accumulate) {
  if (k == 0) {
    for (int64_t i = 0; i < m && !accumulate; ++i) std::fill_n(c + i * ldc, n, 0.f);
    return;
  }
#ifdef CPUBLAS_BRGEMM_F32F32F32
  if (has_brgemm()) return at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, accumulate, a, b, c, false);
#endif
  blas(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

bool gemm_tile_bf16([[maybe_unused]] int64_t m, [[maybe_unused]] int64_t n, [[maybe_unused]] int64_t k,
                    [[maybe_unused]] const uint16_t* a, [[maybe_unused]] int64_t lda,
                    [[maybe_unused]] const uint16_t* b, [[maybe_unused]] float* c, [[maybe_unused]] bool accumulate) {
  static const int64_t rows_for_float = rows_for_float32();
  if (!has_brgemm_bf16() || m >= rows_for_float) return false;
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  at::native::cpublas::brgemm(m, n, k, lda, n, kPanel, accumulate, reinterpret_cast<const at::BFloat16*>(a),
                              reinterpret_cast<const at::BFloat16*>(b), c, true);
#endif
  return true;
}

void gemm_release() {
#ifdef CPUBLAS_BRGEMM_BF16BF16F32
  if (has_brgemm_bf16()) at::native::cpublas::brgemm_release(true);
#endif
#ifdef CPUBLAS_BRGEMM_F32F32F32
  if (has_brgemm()) at::native::cpublas::brgemm_release(false);
#endif
}

}  // namespace dynprune
