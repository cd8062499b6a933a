// The kernels without torch: every instruction set this CPU has, against plain double loops, with guard zones around
// everything that is written. Built with DYNPRUNE_BUILD_TESTS, by tests/test_cpp.py with the sanitizers on.
#include <cstdlib>
#include <cstring>

#include "check.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace dynprune::emulated {
void bf16_plan(Bf16Params&, int64_t);
void bf16_range(const Bf16Params&, double*, int64_t, int64_t);
}  // namespace dynprune::emulated

namespace {

// The caller's rounding and denormal settings come back.
void test_settings(const dynprune::Kernels& kernels) {
#if defined(__SSE2__)
  for (unsigned setting : {_mm_getcsr() & ~0x8040u, _mm_getcsr() | 0x8040u}) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(setting);
    test_linear(kernels, {3, 4, 5, 4, false});
    expect((_mm_getcsr() & 0x8040u) == (setting & 0x8040u), std::string(kernels.isa) + " denormal setting comes back");
    _mm_setcsr(before);
  }
#else
  (void)kernels;
#endif
}

void test_select() {
  const char* error = nullptr;
  setenv("DYNPRUNE_CPU_ISA", "sse9", 1);
  expect(dynprune::select_kernels(&error) == nullptr && error != nullptr, "unknown instruction set is an error");
  error = nullptr;
  setenv("DYNPRUNE_CPU_ISA", "plain", 1);
  const dynprune::Kernels* plain = dynprune::select_kernels(&error);
  expect(plain != nullptr && std::strcmp(plain->isa, "plain") == 0 && error == nullptr, "plain can be forced");
  unsetenv("DYNPRUNE_CPU_ISA");
  expect(dynprune::select_kernels(&error) != nullptr && error == nullptr, "some kernels are always there");
}

}  // namespace

int main() {
  for (const char* isa : {"plain", "avx2", "avx512", "amx"}) {
    const dynprune::Kernels* kernels = dynprune::find_kernels(isa);
    if (kernels == nullptr) {
      std::printf("%s: not on this CPU\n", isa);
      continue;
    }
    const int before = passed;
    expect(std::strcmp(kernels->isa, isa) == 0, std::string(isa) + ": the table says its name");
    test_linear(*kernels);
    test_pack(*kernels);
    test_lstm(*kernels);
    test_conv2d(*kernels);
    test_bf16(*kernels);
    test_max_pool2d(*kernels);
    test_settings(*kernels);
    std::printf("%s: %d passed\n", isa, passed - before);
  }
  // The tiles of AMX as memory.
  dynprune::Kernels emulated = *dynprune::find_kernels("plain");
  emulated.isa = "emulated";
  emulated.bf16_plan = dynprune::emulated::bf16_plan;
  emulated.bf16 = dynprune::emulated::bf16_range;
  test_bf16(emulated);
  expect(dynprune::find_kernels("sse9") == nullptr, "find_kernels: an unknown name has no table");
  test_axes();
  test_select();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
