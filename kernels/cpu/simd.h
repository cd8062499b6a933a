// Sixteen float lanes, written once for every instruction set: one ZMM register, two YMM, four XMM or four NEON.
//
// Everything compiled per ISA lives in the namespace DYNPRUNE_ISA and uses no templates of the standard library: such a
// template would be emitted once per ISA under one name, and the linker could keep the copy an older CPU cannot run.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "pair.h"

namespace dynprune::DYNPRUNE_ISA {

constexpr int64_t kLanes = 16;

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
constexpr int kRegisterLanes = kRegisterBytes / sizeof(float);

// One register, of floats, integers, words, and as many halfwords.
typedef float Register __attribute__((vector_size(kRegisterBytes)));
typedef int32_t RegisterInts __attribute__((vector_size(kRegisterBytes)));
typedef uint32_t RegisterWords __attribute__((vector_size(kRegisterBytes)));
typedef uint16_t RegisterBits __attribute__((vector_size(kRegisterBytes / 2)));

// Sixteen lanes, and half of them.
#if defined(__AVX512F__)
typedef Register Floats;
typedef RegisterInts Ints;
typedef float Half __attribute__((vector_size(32)));
#elif defined(__AVX2__)
typedef Pair<Register> Floats;
typedef Pair<RegisterInts> Ints;
typedef Register Half;
#else
typedef Pair<Pair<Register>> Floats;
typedef Pair<Pair<RegisterInts>> Ints;
typedef Pair<Register> Half;
#endif

// A number as a type, for what is compiled once for each.
template <int v>
struct Constant {
  static constexpr int value = v;
};

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// bfloat16: the upper half of a float, here always as bits. Rounded to the nearest, ties to even; NaN stays NaN.
inline float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &wide, sizeof(v));
  return v;
}

inline RegisterBits narrow(Register v) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<RegisterBits>(_mm512_cvtneps_pbh(v));
#else
  const RegisterWords wide = reinterpret_cast<RegisterWords>(v);
  const RegisterWords rounded = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
  const RegisterWords quiet = wide >> 16 | 0x40;
  return __builtin_convertvector(v == v ? rounded : quiet, RegisterBits);
#endif
}

// What the parts of a vector are made from and go to. A part of `lanes` lanes leaves the others zero, or unwritten.
template <typename V>
struct Memory {
  static constexpr int64_t kCount = sizeof(V) / sizeof(float);

  static V splat(float v) { return v - V{}; }
  static V load(const float* p) {
    V v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(float* p, V v) { std::memcpy(p, &v, sizeof(v)); }
  static void store(uint16_t* p, V v) {
    const RegisterBits bits = narrow(v);
    std::memcpy(p, &bits, sizeof(bits));
  }

  static V load_part(const float* p, int64_t lanes) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), p);
#elif defined(__AVX2__)
    static const int32_t masks[2 * kCount] = {-1, -1, -1, -1, -1, -1, -1, -1};
    int32_t const* const mask = masks + kCount - max_of(0, min_of(lanes, kCount));
    return _mm256_maskload_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask)));
#else
    V v{};
    for (int64_t i = 0; i < kCount; ++i) {
      if (i < lanes) v[i] = p[i];
    }
    return v;
#endif
  }
  // In pieces: masked stores of AVX2 are slow on some CPUs.
  static void store_part(float* p, V v, int64_t lanes) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << lanes) - 1), v);
#else
    if (lanes >= kCount) return store(p, v);
    float all[kCount];
    store(all, v);
    const float* from = all;
    for (int64_t piece = kCount / 2; piece > 0; piece /= 2) {
      if ((lanes & piece) == 0) continue;
      for (int64_t i = 0; i < piece; ++i) p[i] = from[i];
      p += piece;
      from += piece;
    }
#endif
  }
};

template <typename T>
struct Memory<Pair<T>> {
  static constexpr int64_t kCount = 2 * Memory<T>::kCount, kHalf = Memory<T>::kCount;

  static Pair<T> splat(float v) { return {Memory<T>::splat(v), Memory<T>::splat(v)}; }
  static Pair<T> load(const float* p) { return {Memory<T>::load(p), Memory<T>::load(p + kHalf)}; }
  template <typename Out>
  static void store(Out* p, Pair<T> v) {
    Memory<T>::store(p, v.low);
    Memory<T>::store(p + kHalf, v.high);
  }
  static Pair<T> load_part(const float* p, int64_t lanes) {
    return {Memory<T>::load_part(p, lanes), Memory<T>::load_part(p + kHalf, lanes - kHalf)};
  }
  static void store_part(float* p, Pair<T> v, int64_t lanes) {
    if (lanes <= kHalf) return Memory<T>::store_part(p, v.low, lanes);
    Memory<T>::store(p, v.low);
    Memory<T>::store_part(p + kHalf, v.high, lanes - kHalf);
  }
};

template <typename V = Floats>
inline V splat(float v) {
  return Memory<V>::splat(v);
}
template <typename V = Floats>
inline V load(const float* p) {
  return Memory<V>::load(p);
}
template <typename Out, typename V>
inline void store(Out* p, V v) {
  Memory<V>::store(p, v);
}

// The first `lanes` lanes, at least 1; the others are zero, or left unwritten.
template <typename V = Floats>
inline V load_part(const float* p, int64_t lanes) {
  return Memory<V>::load_part(p, lanes);
}
template <typename V>
inline void store_part(float* p, V v, int64_t lanes) {
  Memory<V>::store_part(p, v, lanes);
}
template <typename V>
inline void store_part(uint16_t* p, V v, int64_t lanes) {
  uint16_t all[Memory<V>::kCount];
  store(all, v);
  std::memcpy(p, all, static_cast<size_t>(min_of(lanes, Memory<V>::kCount)) * sizeof(uint16_t));
}

// Has the compiler load `v` once, for all its uses: it would rather give each instruction an operand in memory.
inline void keep_in_register([[maybe_unused]] Register& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#endif
}

// Half a vector of `value`, of which `all` is a whole one: a part of it where that takes no instruction.
inline Half half_of([[maybe_unused]] Register all, [[maybe_unused]] float value) {
#if defined(__AVX512F__)
  return _mm512_castps512_ps256(all);  // GCC would copy through memory or broadcast anew
#else
  return splat<Half>(value);
#endif
}

// Stores to 64-byte aligned memory, past the caches where the instruction set can; `streamed` makes other threads see
// all of it before anything that is stored later.
inline void stream(float* p, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v.low);
  _mm256_stream_ps(p + kRegisterLanes, v.high);
#else
  store(p, v);
#endif
}

inline void streamed() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

inline void copy(float* to, const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) store_part(to + i, load_part(from + i, n - i), n - i);
}

inline void zero(float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, Floats{});
  if (i < n) store_part(to + i, Floats{}, n - i);
}

inline Register select(RegisterInts condition, Register yes, Register no) { return condition ? yes : no; }
inline RegisterInts as_ints(Register v) { return reinterpret_cast<RegisterInts>(v); }
inline Register as_floats(RegisterInts v) { return reinterpret_cast<Register>(v); }
inline RegisterInts to_ints(Register v) { return __builtin_convertvector(v, RegisterInts); }

template <typename I, typename T>
inline Pair<T> select(Pair<I> condition, Pair<T> yes, Pair<T> no) {
  return {select(condition.low, yes.low, no.low), select(condition.high, yes.high, no.high)};
}
template <typename T>
inline auto as_ints(Pair<T> v) {
  return Pair<decltype(as_ints(v.low))>{as_ints(v.low), as_ints(v.high)};
}
template <typename I>
inline auto as_floats(Pair<I> v) {
  return Pair<decltype(as_floats(v.low))>{as_floats(v.low), as_floats(v.high)};
}
template <typename T>
inline auto to_ints(Pair<T> v) {
  return Pair<decltype(to_ints(v.low))>{to_ints(v.low), to_ints(v.high)};
}

// max(x, 0), but NaN stays NaN.
template <typename V>
inline V vrelu(V x) {
  return select(x < splat<V>(0.f), splat<V>(0.f), x);
}
#if defined(__AVX512F__)
template <>
inline Register vrelu(Register x) {
  return _mm512_maskz_max_ps(0xffff, Register{}, x);  // the second operand if either is NaN
}
#endif

template <typename V>
inline V vabs(V a) {
  return as_floats(as_ints(a) & 0x7fffffff);
}

// e^x to about one unit in the last place: x = n ln2 + r, a degree-6 polynomial in r (Cephes expf), 2^n by the exponent
// field. NaN stays NaN; below -87.3 the result is the smallest normal number, not a denormal.
template <typename V>
inline V vexp(V x) {
  const V high = splat<V>(88.3762626647949f), low = splat<V>(-87.3365478515625f);
  V clamped = select(x > high, high, select(x < low, low, x));
  V n = clamped * splat<V>(1.44269504088896341f);
  n = (n + splat<V>(12582912.f)) - splat<V>(12582912.f);  // round to nearest: 1.5 * 2^23 leaves no bits for a fraction
  V r = clamped - n * splat<V>(0.693359375f);
  r = r - n * splat<V>(-2.12194440e-4f);
  V p = splat<V>(1.9875691500e-4f);
  p = p * r + splat<V>(1.3981999507e-3f);
  p = p * r + splat<V>(8.3334519073e-3f);
  p = p * r + splat<V>(4.1665795894e-2f);
  p = p * r + splat<V>(1.6666665459e-1f);
  p = p * r + splat<V>(5.0000001201e-1f);
  p = p * (r * r) + r + splat<V>(1.f);
  return p * as_floats((to_ints(n) + 127) << 23);
}

template <typename V>
inline V vsigmoid(V x) {
  return splat<V>(1.f) / (splat<V>(1.f) + vexp(-x));
}

// tanh: near zero (1 - e) / (1 + e) would cancel, so there an odd polynomial serves (Cephes tanhf).
template <typename V>
inline V vtanh(V x) {
  V a = vabs(x);
  V e = vexp(a * splat<V>(-2.f));
  V large = (splat<V>(1.f) - e) / (splat<V>(1.f) + e);
  large = select(x < splat<V>(0.f), -large, large);
  V z = x * x;
  V p = splat<V>(-5.70498872745e-3f);
  p = p * z + splat<V>(2.06390887954e-2f);
  p = p * z + splat<V>(-5.37397155531e-2f);
  p = p * z + splat<V>(1.33314422036e-1f);
  p = p * z + splat<V>(-3.33332819422e-1f);
  V small = p * z * x + x;
  return select(a < splat<V>(0.625f), small, large);
}

// erf with an absolute error under 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
template <typename V>
inline V verf(V x) {
  V a = vabs(x);
  V t = splat<V>(1.f) / (splat<V>(1.f) + splat<V>(0.3275911f) * a);
  V p = splat<V>(1.061405429f);
  p = p * t + splat<V>(-1.453152027f);
  p = p * t + splat<V>(1.421413741f);
  p = p * t + splat<V>(-0.284496736f);
  p = p * t + splat<V>(0.254829592f);
  V y = splat<V>(1.f) - p * t * vexp(-(a * a));
  return select(x < splat<V>(0.f), -y, y);
}

}  // namespace dynprune::DYNPRUNE_ISA
