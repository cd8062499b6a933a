// What happens to a tile of products while it is in shared memory: bias, activation, usage sums, store.
#pragma once

#include "gemm.h"

namespace dynprune::cuda {

struct Epilogue {
  const float* bias;  // [zones, bias_stride]; nullptr: none
  int64_t bias_stride;
  const int64_t* bias_indices;  // [units] columns of `bias`; nullptr: as they lie
  void* output;                 // [rows, output_stride] of float32 or of the operands' type; aliases nothing
  int64_t output_stride;        // in elements
  bool wide;                    // float32 beside operands of half the width
  ActivationSpec activation;
  double* usage;  // [row tiles, kUsageRows, usage_stride]: a tile's sums; nullptr: not wanted
  int64_t usage_stride;
  bool usage_adds;  // the only row tile adds to what is there
};

constexpr int kVector = 4;  // units that a thread finishes at a time

DYNPRUNE_DEVICE void activate(const ActivationSpec& spec, float (&x)[kVector]) {
  auto each = [&](auto f) {
    DYNPRUNE_UNROLL
    for (int j = 0; j < kVector; ++j) x[j] = f(x[j]);
  };
  switch (spec.kind) {
    case Activation::none: return;
    case Activation::relu: return each([](float v) { return v < 0.f ? 0.f : v; });  // NaN stays NaN
    case Activation::leaky_relu: return each([&](float v) { return v < 0.f ? v * spec.slope : v; });
    case Activation::gelu: return each([](float v) { return v * 0.5f * (1.f + erff(v * 0.70710678118654752f)); });
    case Activation::gelu_tanh:
      return each([](float v) { return v * 0.5f * (1.f + tanhf(0.79788456080286536f * (v + 0.044715f * v * v * v))); });
    case Activation::silu: return each([](float v) { return v / (1.f + expf(-v)); });
    case Activation::tanh: return each([](float v) { return tanhf(v); });
    case Activation::sigmoid: return each([](float v) { return 1.f / (1.f + expf(-v)); });
  }
}

template <Number number>
DYNPRUNE_DEVICE uint16_t to_half(float x) {
  return number == Number::f16 ? to_f16(x) : to_bf16(x);
}

// Stores `units` of four values.
template <Number number>
DYNPRUNE_DEVICE void store(const Epilogue& e, int64_t at, const float (&y)[kVector], int units, bool vectors) {
  if (element_bytes(number) == 4 || e.wide) {
    float* const to = static_cast<float*>(e.output) + at;
    if (vectors && units == kVector) {
      *reinterpret_cast<Float4*>(to) = {y[0], y[1], y[2], y[3]};
    } else {
      DYNPRUNE_UNROLL
      for (int j = 0; j < kVector; ++j) {
        if (j < units) to[j] = y[j];
      }
    }
  } else {
    uint16_t* const to = static_cast<uint16_t*>(e.output) + at;
    const uint32_t low = to_half<number>(y[0]) | static_cast<uint32_t>(to_half<number>(y[1])) << 16;
    const uint32_t high = to_half<number>(y[2]) | static_cast<uint32_t>(to_half<number>(y[3])) << 16;
    if (vectors && units == kVector) {
      *reinterpret_cast<Float2*>(to) = {bits_float(low), bits_float(high)};
    } else {
      DYNPRUNE_UNROLL
      for (int j = 0; j < kVector; ++j) {
        if (j < units) to[j] = static_cast<uint16_t>((j < 2 ? low : high) >> (j % 2 * 16));
      }
    }
  }
}

// Usage of four units over some rows, taken about `shift`: a unit that is nearly constant keeps its variance, although
// the sums are float32 until the tile is done.
struct UsageSums {
  float shift[kVector], magnitude[kVector], deviation[kVector], square[kVector], count[kVector];
};

DYNPRUNE_DEVICE void add_usage(UsageSums& s, const float (&y)[kVector]) {
  DYNPRUNE_UNROLL
  for (int j = 0; j < kVector; ++j) {
    const float d = y[j] - s.shift[j];
    if (!(d * d + fabsf(y[j]) < INFINITY)) continue;  // NaN, infinite, or next to it: it never enters
    s.magnitude[j] += fabsf(y[j]);
    s.deviation[j] += d;
    s.square[j] += d * d;
    s.count[j] += 1.f;
  }
}

// Adds up the sums that `groups` threads have of each unit, and writes them. Takes the product's place.
template <class T>
DYNPRUNE_DEVICE void finish_usage(const Epilogue& e, const UsageSums& s, int group, int quad, int tile, int64_t unit,
                                  int units) {
  constexpr int kGroups = T::kThreads / (T::kUnits / kVector);
  static_assert(kGroups * 5 * T::kUnits * 4 <= T::kScratchBytes);
  float* const partial = reinterpret_cast<float*>(shared());  // [kGroups][5][kUnits]
  sync();                                                     // nobody reads the product any more
  DYNPRUNE_UNROLL
  for (int j = 0; j < kVector; ++j) {
    float* const to = partial + group * 5 * T::kUnits + quad * kVector + j;
    to[0] = s.magnitude[j];
    to[T::kUnits] = s.deviation[j];
    to[2 * T::kUnits] = s.square[j];
    to[3 * T::kUnits] = s.count[j];
    to[4 * T::kUnits] = s.shift[j];
  }
  sync();
  if (thread() >= units) return;
  double magnitude = 0, deviation = 0, square = 0, count = 0;
  const float* from = partial + thread();
  const double shift = from[4 * T::kUnits];
  DYNPRUNE_NO_UNROLL
  for (int g = 0; g < kGroups; ++g, from += 5 * T::kUnits) {
    magnitude += from[0];
    deviation += from[T::kUnits];
    square += from[2 * T::kUnits];
    count += from[3 * T::kUnits];
  }
  if (!(magnitude + square < static_cast<double>(INFINITY))) magnitude = deviation = square = count = 0;
  const double sums[kUsageRows] = {magnitude, count * shift + deviation,
                                   count * shift * shift + 2 * shift * deviation + square, count};
  double* to = e.usage + static_cast<int64_t>(tile) * kUsageRows * e.usage_stride + unit + thread();
  DYNPRUNE_UNROLL
  for (int row = 0; row < kUsageRows; ++row, to += e.usage_stride) *to = e.usage_adds ? *to + sums[row] : sums[row];
}

// Finishes row tile `tile`: rows [row, row + rows) and units [unit, unit + units) from the product in shared memory.
// `zone`: int [rows] in shared memory, the row of `bias` for each; nullptr: row 0 for all.
template <class T, Number number>
DYNPRUNE_DEVICE void finish(const Epilogue& e, int tile, int64_t row, int rows, int64_t unit, int units,
                            const int* zone) {
  constexpr int kQuads = T::kUnits / kVector, kGroups = T::kThreads / kQuads;
  const float* const product = reinterpret_cast<const float*>(shared());
  const int quad = thread() % kQuads, group = thread() / kQuads, some = units - quad * kVector;
  const int64_t first = unit + quad * kVector;
  const bool vectors = e.output_stride % kVector == 0 && reinterpret_cast<uintptr_t>(e.output) % 16 == 0;
  int64_t column[kVector];
  float fixed[kVector];
  DYNPRUNE_UNROLL
  for (int j = 0; j < kVector; ++j) {
    column[j] = j < some && e.bias_indices != nullptr ? e.bias_indices[first + j] : first + j;
    fixed[j] = e.bias != nullptr && zone == nullptr && j < some ? e.bias[column[j]] : 0.f;
  }
  auto value = [&](int r, float (&y)[kVector]) {
    const Float4 v = *reinterpret_cast<const Float4*>(product + r * T::kProductStride + quad * kVector);
    y[0] = v.x + fixed[0], y[1] = v.y + fixed[1], y[2] = v.z + fixed[2], y[3] = v.w + fixed[3];
    if (zone != nullptr) {
      DYNPRUNE_UNROLL
      for (int j = 0; j < kVector; ++j) {
        if (j < some) y[j] += e.bias[zone[r] * e.bias_stride + column[j]];
      }
    }
    activate(e.activation, y);
  };
  UsageSums sums{};
  if (e.usage != nullptr) {
    value(rows / 2, sums.shift);  // the first may lie at an image's border
    DYNPRUNE_UNROLL
    for (int j = 0; j < kVector; ++j) {
      if (!(fabsf(sums.shift[j]) < INFINITY)) sums.shift[j] = 0.f;
    }
  }
  DYNPRUNE_NO_UNROLL
  for (int r = group; r < rows; r += kGroups) {
    float y[kVector];
    value(r, y);
    if (some > 0) store<number>(e, (row + r) * e.output_stride + first, y, some < kVector ? some : kVector, vectors);
    if (e.usage != nullptr) add_usage(sums, y);
  }
  if (e.usage != nullptr) finish_usage<T>(e, sums, group, quad, tile, unit, units);
}

}  // namespace dynprune::cuda
