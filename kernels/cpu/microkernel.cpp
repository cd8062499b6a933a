#include "microkernel.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// kVectors registers (and half a one) of columns of product[kPixels, ...] = taps * weight, weight [depth, width].
template <int kPixels, int kVectors, bool kHalf>
void product_tile(const Taps& t, const float* weight, int64_t width, float* product, int64_t product_stride) {
  Register sum[kPixels][kVectors + 1] = {};
  Half rest[kPixels] = {};
  if (t.output != nullptr) {
    prefetch_output(t.output, t.output_stride, kPixels, kVectors * kRegisterLanes + (kHalf ? kUnitAlign : 0));
  }
  for (int64_t kh = 0; kh < t.kernel_h; ++kh) {
    for (int64_t kw = 0; kw < t.kernel_w; ++kw) {
      const float* input = t.input + kh * t.tap_stride_h + kw * t.tap_stride_w;
      // The weights of a tile run through the whole L1 and push the input out: fetch the next tap's pixels again.
      // Within a kernel row only the last pixel is new. Of few channels all pixels stay there, and products are short.
      const bool last = kw + 1 == t.kernel_w;
      const bool over = last && kh + 1 == t.kernel_h;  // then it is the next tile's
      const float* next = over   ? t.input + kPixels * t.pixel_stride
                          : last ? t.input + (kh + 1) * t.tap_stride_h
                                 : input + t.tap_stride_w;
      for (int r = last ? 0 : kPixels - 1; r < kPixels && t.channels >= kLanes; ++r) {
        for (int64_t c = 0; c < t.channels; c += kLanes) __builtin_prefetch(next + r * t.pixel_stride + c);
      }
      for (int64_t c = 0; c < t.channels; ++c, weight += width) {
        Register w[kVectors + 1];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          w[v] = load<Register>(weight + v * kRegisterLanes);
          if constexpr (kRowsAhead > 0 && kVectors == kGroup) {
            __builtin_prefetch(weight + kRowsAhead * width + v * kRegisterLanes);
          }
          if constexpr (kPixels > 1) keep_in_register(w[v]);
        }
        Half w_rest{};
        if constexpr (kHalf) w_rest = load<Half>(weight + kVectors * kRegisterLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kPixels; ++r) {
          const float value = input[r * t.pixel_stride + c];
          const Register x = value - Register{};
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sum[r][v] += x * w[v];
          if constexpr (kHalf) rest[r] += half_of(x, value) * w_rest;
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kPixels; ++r) {
    float* to = product + r * product_stride;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(to + v * kRegisterLanes, sum[r][v]);
    if constexpr (kHalf) store(to + kVectors * kRegisterLanes, rest[r]);
  }
}

template <int kPixels, int kVectors, bool kHalf>
void product_rest(int64_t pixels, const Taps& t, const float* weight, int64_t width, float* product, int64_t stride) {
  if (pixels == kPixels) return product_tile<kPixels, kVectors, kHalf>(t, weight, width, product, stride);
  if constexpr (kPixels > 1) {
    product_rest<kPixels - 1, kVectors, kHalf>(pixels, t, weight, width, product, stride);
  }
}

// A run of pixels in tiles of equal size.
template <int kVectors, bool kHalf>
void product_run(int64_t pixels, Taps t, const float* weight, int64_t width, float* product, int64_t stride) {
  constexpr int most = pixels_of(kVectors + kHalf);
  int64_t tiles = (pixels + most - 1) / most;
  for (; tiles > 0; --tiles) {
    const int64_t count = (pixels + tiles - 1) / tiles;
    product_rest<most, kVectors, kHalf>(count, t, weight, width, product, stride);
    t.input += count * t.pixel_stride;
    if (t.output != nullptr) t.output += count * t.output_stride;
    product += count * stride;
    pixels -= count;
  }
}

// As many columns of a run as `lanes` says, a multiple of 8 up to a whole group.
template <int kVectors>
void product_columns(int64_t lanes, int64_t pixels, const Taps& t, const float* weight, int64_t width, float* product,
                     int64_t stride) {
  if constexpr (kVectors == 0) {
    product_run<0, true>(pixels, t, weight, width, product, stride);
  } else {
    if (lanes == kVectors * kRegisterLanes) {
      return product_run<kVectors, false>(pixels, t, weight, width, product, stride);
    }
    if constexpr (kRegisterLanes == kLanes && kVectors < kGroup) {
      if (lanes > kVectors * kRegisterLanes) {
        return product_run<kVectors, true>(pixels, t, weight, width, product, stride);
      }
    }
    if constexpr (kVectors > 1 || kRegisterLanes == kLanes) {
      product_columns<kVectors - 1>(lanes, pixels, t, weight, width, product, stride);
    }
  }
}

}  // namespace

namespace {

// Columns in groups of kColumns registers.
template <int kColumns>
void multiply_groups(int64_t pixels, Taps t, const float* weight, int64_t width, float* product, int64_t stride) {
  constexpr int64_t kColumnLanes = kColumns * kRegisterLanes;
  for (int64_t j = 0; j < width; j += kColumnLanes) {
    const int64_t lanes = min_of(kColumnLanes, width - j);
    product_columns<kColumns>(lanes, pixels, t, weight + j, width, product + j, stride);
    if (t.output != nullptr) t.output += kColumnLanes;
  }
}

}  // namespace

void multiply_run(int64_t pixels, Taps t, const float* weight, int64_t width, float* product, int64_t product_stride) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // Few pixels need more columns at once to fill the pipelines, and read the weights in longer runs.
  if (pixels == 1) return multiply_groups<8>(pixels, t, weight, width, product, product_stride);
  if (pixels <= 3) return multiply_groups<4>(pixels, t, weight, width, product, product_stride);
#endif
  multiply_groups<kGroup>(pixels, t, weight, width, product, product_stride);
}

}  // namespace dynprune::DYNPRUNE_ISA
