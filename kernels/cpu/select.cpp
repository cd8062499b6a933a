// Compiled once, without ISA flags: it runs before it is known what the CPU can do.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

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
#endif

const Kernels* find_kernels(const char* isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(isa, "avx512") == 0) {
    const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return here ? avx512::table() : nullptr;
  }
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
    if (kernels == nullptr) *error = "DYNPRUNE_CPU_ISA: expected avx512, avx2 or plain, and one that this CPU has";
    return kernels;
  }
  for (const char* isa : {"avx512", "avx2"}) {
    if (const Kernels* kernels = find_kernels(isa)) return kernels;
  }
  return find_kernels("plain");
}

}  // namespace dynprune
