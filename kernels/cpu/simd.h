// Sixteen float lanes, written once for every instruction set: the compiler lowers the vector type to one ZMM, two YMM,
// four XMM or four NEON registers, depending on the flags this translation unit is compiled with.
//
// Everything compiled per ISA lives in the namespace DYNPRUNE_ISA and uses no templates of the standard library: such a
// template would be emitted once per ISA under one name, and the linker could keep the copy an older CPU cannot run.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef DYNPRUNE_ISA
#error "DYNPRUNE_ISA (the namespace of this instruction set) is defined by CMakeLists.txt"
#endif

namespace dynprune::DYNPRUNE_ISA {

constexpr int64_t kLanes = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Half __attribute__((vector_size(32)));
typedef float FloatsUnaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef float HalfUnaligned __attribute__((vector_size(32), aligned(4), may_alias));

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

inline Floats splat(float v) { return v - Floats{}; }
inline Floats load(const float* p) { return *reinterpret_cast<const FloatsUnaligned*>(p); }
inline Half load_half(const float* p) { return *reinterpret_cast<const HalfUnaligned*>(p); }
inline void store_half(float* p, Half v) { *reinterpret_cast<HalfUnaligned*>(p) = v; }
inline void store(float* p, Floats v) { *reinterpret_cast<FloatsUnaligned*>(p) = v; }

// The first `lanes` (1 to 16) lanes; the others are zero, or left unwritten.
inline Floats load_part(const float* p, int64_t lanes) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), p);
#else
  Floats v{};
  std::memcpy(&v, p, static_cast<size_t>(lanes) * sizeof(float));
  return v;
#endif
}

inline void store_part(float* p, Floats v, int64_t lanes) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << lanes) - 1), v);
#else
  std::memcpy(p, &v, static_cast<size_t>(lanes) * sizeof(float));
#endif
}

// Stores to 64-byte aligned memory, past the caches where the instruction set can; `streamed` makes other threads see
// all of it before anything that is stored later.
inline void stream(float* p, Floats v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#else
  store(p, v);
#endif
}

inline void streamed() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// bfloat16: the upper half of a float, here always as bits. Rounded to the nearest, ties to even; NaN stays NaN.
typedef uint16_t Bits __attribute__((vector_size(32)));

inline float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &wide, sizeof(v));
  return v;
}

inline Bits narrow(Floats v) {
  typedef uint32_t Words __attribute__((vector_size(64)));
  const Words wide = reinterpret_cast<Words>(v);
  const Words rounded = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
  const Words quiet = wide >> 16 | 0x40;
  return __builtin_convertvector(v == v ? rounded : quiet, Bits);
}

inline void store(uint16_t* p, Floats v) {
  const Bits bits = narrow(v);
  std::memcpy(p, &bits, sizeof(bits));
}

inline void store_part(uint16_t* p, Floats v, int64_t lanes) {
  const Bits bits = narrow(v);
  std::memcpy(p, &bits, static_cast<size_t>(lanes) * sizeof(uint16_t));
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

inline Floats select(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }
inline Floats vmax(Floats a, Floats b) { return select(a > b, a, b); }
inline Floats vmin(Floats a, Floats b) { return select(a < b, a, b); }
inline Floats vabs(Floats a) { return reinterpret_cast<Floats>(reinterpret_cast<Ints>(a) & 0x7fffffff); }

// e^x to about one unit in the last place: x = n ln2 + r, a degree-6 polynomial in r (Cephes expf), 2^n by the exponent
// field. NaN stays NaN; below -87.3 the result is the smallest normal number, not a denormal.
inline Floats vexp(Floats x) {
  const Floats high = splat(88.3762626647949f), low = splat(-87.3365478515625f);
  Floats clamped = select(x > high, high, select(x < low, low, x));
  Floats n = clamped * splat(1.44269504088896341f);
  n = (n + splat(12582912.f)) - splat(12582912.f);  // round to nearest: 1.5 * 2^23 leaves no bits for a fraction
  Floats r = clamped - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  Floats p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * (r * r) + r + splat(1.f);
  Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<Floats>(exponent);
}

inline Floats vsigmoid(Floats x) { return splat(1.f) / (splat(1.f) + vexp(-x)); }

// tanh: near zero (1 - e) / (1 + e) would cancel, so there an odd polynomial serves (Cephes tanhf).
inline Floats vtanh(Floats x) {
  Floats a = vabs(x);
  Floats e = vexp(a * splat(-2.f));
  Floats large = (splat(1.f) - e) / (splat(1.f) + e);
  large = select(x < splat(0.f), -large, large);
  Floats z = x * x;
  Floats p = splat(-5.70498872745e-3f);
  p = p * z + splat(2.06390887954e-2f);
  p = p * z + splat(-5.37397155531e-2f);
  p = p * z + splat(1.33314422036e-1f);
  p = p * z + splat(-3.33332819422e-1f);
  Floats small = p * z * x + x;
  return select(a < splat(0.625f), small, large);
}

// erf with an absolute error under 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
inline Floats verf(Floats x) {
  Floats a = vabs(x);
  Floats t = splat(1.f) / (splat(1.f) + splat(0.3275911f) * a);
  Floats p = splat(1.061405429f);
  p = p * t + splat(-1.453152027f);
  p = p * t + splat(1.421413741f);
  p = p * t + splat(-0.284496736f);
  p = p * t + splat(0.254829592f);
  Floats y = splat(1.f) - p * t * vexp(-(a * a));
  return select(x < splat(0.f), -y, y);
}

}  // namespace dynprune::DYNPRUNE_ISA
