// Per-thread state of a kernel range: scratch memory that grows and is kept, and denormals flushed to zero.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace dynprune::DYNPRUNE_ISA {

constexpr int kSlots = 7;

// 64-byte aligned floats that live as long as the thread. Each slot is a buffer of its own.
inline float* scratch(int slot, int64_t floats) {
  struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffers[kSlots];
  Buffer& buffer = buffers[slot];
  if (buffer.size < floats) {
    std::free(buffer.data);
    const int64_t rounded = (floats + 1023) / 1024 * 1024;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(rounded) * sizeof(float)));
    if (buffer.data == nullptr) std::abort();  // a few hundred kilobytes: nothing sensible is left to do
    buffer.size = rounded;
  }
  return buffer.data;
}

// Denormal results cost a hundred cycles each and carry no information here; the caller's setting comes back
// afterwards.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
#endif
};

}  // namespace dynprune::DYNPRUNE_ISA
