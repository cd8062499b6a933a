// The product of a convolution tile with the accumulators in registers over the whole depth: no second pass over the
// products, and no staging of overlapping taps.
#pragma once

#include "simd.h"
#include "types.h"

namespace dynprune::DYNPRUNE_ISA {

// Where a run of output pixels reads its input: pixel r, kernel row kh, kernel column kw, channel c at
// input[r * pixel_stride + kh * tap_stride_h + kw * tap_stride_w + c].
struct Taps {
  const float* input;
  int64_t pixel_stride, tap_stride_h, tap_stride_w;
  int64_t kernel_h, kernel_w, channels;
  const float* output = nullptr;  // where the pixels go in the end, fetched meanwhile; nullptr: unknown
  int64_t output_stride = 0;
};

// The number of accumulators that fit beside the weights and an input value, and the registers of a group of columns
// whose weights are kept while the pixels of a tile pass by.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAccumulators = 24, kGroup = 4;
#else
constexpr int kAccumulators = 12, kGroup = 2;
#endif
constexpr int kMostPixels = 12;

// How many rows of a panel ahead a whole group's weights are fetched into L1: few pixels run through them faster than
// the hardware guesses.
#if defined(__AVX512F__)
constexpr int64_t kRowsAhead = 24;
#else
constexpr int64_t kRowsAhead = 0;
#endif

constexpr int pixels_of(int registers) {
  const int fit = kAccumulators / (registers < 1 ? 1 : registers);
  return fit > kMostPixels ? kMostPixels : fit;
}

// Pixels of a full tile for a panel of this width.
constexpr int64_t pixels_per_tile(int64_t width) {
  const int64_t registers = (width + kRegisterLanes - 1) / kRegisterLanes;
  return pixels_of(registers > kGroup ? kGroup : static_cast<int>(registers));
}

// A store that misses the cache holds up those behind it, so the lines to be written are fetched while there is
// something to compute.
inline void prefetch_output(const float* output, int64_t stride, int64_t pixels, int64_t units) {
  for (int64_t r = 0; r < pixels; ++r) {
    for (int64_t c = 0; c < units; c += kLanes) __builtin_prefetch(output + r * stride + c, 1);
  }
}

// product[pixels, width] of a run of pixels in one output row; width, that of the panel, is a multiple of 8 up to 64.
void multiply_run(int64_t pixels, Taps t, const float* weight, int64_t width, float* product, int64_t product_stride);

}  // namespace dynprune::DYNPRUNE_ISA
