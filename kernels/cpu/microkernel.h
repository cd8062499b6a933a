// The product of a convolution tile with the accumulators in registers over the whole depth: no second pass over the
// products, and no staging of overlapping taps.
#pragma once

#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

// Where a run of output pixels reads its input: pixel r, kernel row kh, kernel column kw, channel c at
// input[r * pixel_stride + kh * tap_stride_h + kw * tap_stride_w + c].
struct Taps {
  const float* input;
  int64_t pixel_stride, tap_stride_h, tap_stride_w;
  int64_t kernel_h, kernel_w, channels;
};

// product[kPixels, width] = taps * weight, weight [depth, width], with width = kVectors * 16 + (kHalf ? 8 : 0).
template <int kPixels, int kVectors, bool kHalf>
void product_tile(const Taps& t, const float* weight, float* product, int64_t product_stride) {
  constexpr int kWidth = kVectors * kLanes + (kHalf ? kLanes / 2 : 0);
  Floats sum[kPixels][kVectors + 1] = {};
  Half rest[kPixels] = {};
  for (int64_t kh = 0; kh < t.kernel_h; ++kh) {
    for (int64_t kw = 0; kw < t.kernel_w; ++kw) {
      const float* input = t.input + kh * t.tap_stride_h + kw * t.tap_stride_w;
      // The weights of a tile run through the whole L1 and push the input out: fetch the next tap's pixels again.
      // Within a kernel row only the last pixel is new.
      const bool last = kw + 1 == t.kernel_w;
      const float* next = last ? t.input + (kh + 1) * t.tap_stride_h : input + t.tap_stride_w;
      for (int r = last ? 0 : kPixels - 1; r < kPixels; ++r) {
        for (int64_t c = 0; c < t.channels; c += kLanes) __builtin_prefetch(next + r * t.pixel_stride + c);
      }
      for (int64_t c = 0; c < t.channels; ++c, weight += kWidth) {
        Floats w[kVectors + 1];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) w[v] = load(weight + v * kLanes);
        Half w_rest{};
        if constexpr (kHalf) w_rest = load_half(weight + kVectors * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kPixels; ++r) {
          const float value = input[r * t.pixel_stride + c];
          const Floats x = splat(value);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[r][v] += x * w[v];
          if constexpr (kHalf) rest[r] += (value - Half{}) * w_rest;
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kPixels; ++r) {
    float* to = product + r * product_stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(to + v * kLanes, sum[r][v]);
    if constexpr (kHalf) store_half(to + kVectors * kLanes, rest[r]);
  }
}

// As many accumulators as the registers hold, beside the weights and one input value.
#if defined(__AVX512F__)
constexpr int kAccumulators = 24;
#elif defined(__aarch64__)
constexpr int kAccumulators = 6;
#elif defined(__AVX2__)
constexpr int kAccumulators = 6;
#else
constexpr int kAccumulators = 3;
#endif
constexpr int kMostPixels = 12;

// Pixels of a full tile for a panel of this width.
constexpr int64_t pixels_per_tile(int64_t width) {
  const int64_t fit = kAccumulators / ((width + kLanes - 1) / kLanes);
  return fit < 1 ? 1 : (fit > kMostPixels ? kMostPixels : fit);
}

template <int kPixels, int kVectors, bool kHalf>
void product_rest(int64_t pixels, const Taps& t, const float* weight, float* product, int64_t product_stride) {
  if (pixels == kPixels) return product_tile<kPixels, kVectors, kHalf>(t, weight, product, product_stride);
  if constexpr (kPixels > 1) product_rest<kPixels - 1, kVectors, kHalf>(pixels, t, weight, product, product_stride);
}

// A run of pixels in tiles of equal size.
template <int kVectors, bool kHalf>
void product_run(int64_t pixels, Taps t, const float* weight, float* product, int64_t product_stride) {
  constexpr int most = static_cast<int>(pixels_per_tile((kVectors + kHalf) * kLanes));
  int64_t tiles = (pixels + most - 1) / most;
  for (; tiles > 0; --tiles) {
    const int64_t count = (pixels + tiles - 1) / tiles;
    product_rest<most, kVectors, kHalf>(count, t, weight, product, product_stride);
    t.input += count * t.pixel_stride;
    product += count * product_stride;
    pixels -= count;
  }
}

// product[pixels, width] of a run of pixels in one output row; width, that of the panel, is a multiple of 8 up to 64.
inline void multiply_run(int64_t pixels, const Taps& t, const float* weight, int64_t width, float* product,
                         int64_t product_stride) {
  switch (width / (kLanes / 2)) {
    case 1: return product_run<0, true>(pixels, t, weight, product, product_stride);
    case 2: return product_run<1, false>(pixels, t, weight, product, product_stride);
    case 3: return product_run<1, true>(pixels, t, weight, product, product_stride);
    case 4: return product_run<2, false>(pixels, t, weight, product, product_stride);
    case 5: return product_run<2, true>(pixels, t, weight, product, product_stride);
    case 6: return product_run<3, false>(pixels, t, weight, product, product_stride);
    case 7: return product_run<3, true>(pixels, t, weight, product, product_stride);
    default: return product_run<4, false>(pixels, t, weight, product, product_stride);
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
