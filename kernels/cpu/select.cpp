// Compiled once, without ISA flags: it runs before it is known what the CPU can do.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dynprune {

namespace plain {
const Kernels* table();
}
#if defined(__x86_64__)
namespace avx2 {
const Kernels* table();
}
namespace avx512 {
const Kernels* table();
}
namespace amx {
const Kernels* table();
}

namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Whether the CPU multiplies bfloat16 on tiles, and the system lets this process use them, which it has to be asked
// for.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kTiles = 1u << 24, kBfloat16 = 1u << 22;  // EDX of leaf 7
  constexpr long kAskForPermission = 0x1023, kTileData = 18;   // of arch_prctl
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTiles) == 0 || (d & kBfloat16) == 0) return false;
  return has_avx512() && __builtin_cpu_supports("avx512bf16") &&
         syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

const Kernels* find_kernels(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(isa, "amx") == 0) return has_amx() ? amx::table() : nullptr;
  if (std::strcmp(isa, "avx512") == 0) return has_avx512() ? avx512::table() : nullptr;
  if (std::strcmp(isa, "avx2") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2::table() : nullptr;
  }
#endif
  return std::strcmp(isa, "plain") == 0 ? plain::table() : nullptr;
}

const Kernels* select_kernels(const char** error) {
  const char* forced = std::getenv("DYNPRUNE_CPU_ISA");
  if (forced != nullptr && *forced != '\0') {
    const Kernels* kernels = find_kernels(forced);
    if (kernels == nullptr) *error = "DYNPRUNE_CPU_ISA: expected amx, avx512, avx2 or plain, and one that this CPU has";
    return kernels;
  }
  for (const char* isa : {"amx", "avx512", "avx2"}) {
    if (const Kernels* kernels = find_kernels(isa)) return kernels;
  }
  return find_kernels("plain");
}

}  // namespace dynprune
