// What happens to a tile of products while it is in L1: bias, activation, usage sums, store.
#pragma once

#include "simd.h"
#include "types.h"

namespace dynprune::DYNPRUNE_ISA {

// Out: float, or uint16_t for bfloat16.
template <typename Out>
struct EpilogueTileOf {
  const float* product;  // [rows, product_stride], columns up to the next multiple of 16 readable
  int64_t product_stride;
  int64_t rows, units;  // units of this panel, 1 to kPanel
  const float* bias;    // [zones, bias_stride] at the panel's first unit; nullptr: none
  const int32_t* zone;  // [rows] row of `bias` for each row of the tile; nullptr: row 0 for all
  int64_t bias_stride;
  Out* output;  // [rows, output_stride] at the panel's first unit
  int64_t output_stride;
  double* usage;         // [kUsageRows, usage_stride] at the panel's first unit, added to; nullptr: not wanted
  int64_t usage_stride;  // rows of `usage` have room for whole vectors
};
typedef EpilogueTileOf<float> EpilogueTile;

template <Activation kind, typename V>
inline V activate(V x, V slope) {
  const V zero = splat<V>(0.f), one = splat<V>(1.f), half = splat<V>(0.5f);
  switch (kind) {
    case Activation::none: return x;
    case Activation::relu: return select(x < zero, zero, x);  // NaN stays NaN
    case Activation::leaky_relu: return select(x < zero, x * slope, x);
    case Activation::gelu: return x * half * (one + verf(x * splat<V>(0.70710678118654752f)));
    case Activation::gelu_tanh: {
      V inner = splat<V>(0.79788456080286536f) * (x + splat<V>(0.044715f) * x * x * x);
      return x * half * (one + vtanh(inner));
    }
    case Activation::silu: return x * vsigmoid(x);
    case Activation::tanh: return vtanh(x);
    case Activation::sigmoid: return vsigmoid(x);
  }
  return x;
}

// Sums of one register of units over the rows of a tile, taken about the middle row's values (the first may lie at an
// image's border): a unit that is nearly constant keeps its variance, although the sums are float32 until the tile is
// done.
struct UsageSums {
  Register shift, magnitude, deviation, square;
};

inline void add_usage(const UsageSums& s, int64_t rows, int64_t lanes, double* usage, int64_t stride) {
  const double count = static_cast<double>(rows);
  for (int64_t j = 0; j < lanes; ++j) {
    const double shift = s.shift[j], deviation = s.deviation[j], magnitude = s.magnitude[j];
    const double square = count * shift * shift + 2 * shift * deviation + s.square[j];
    // NaN or infinity in this tile, or a sum that overflowed: it never enters.
    if (!(square + magnitude < __builtin_huge_val())) continue;
    usage[j] += magnitude;
    usage[stride + j] += count * shift + deviation;
    usage[2 * stride + j] += square;
    usage[3 * stride + j] += count;
  }
}

template <Activation kind, bool kUsage, bool kZones, bool kPart, typename Out>
inline void finish_column(const EpilogueTileOf<Out>& t, int64_t column, int64_t lanes, Register slope) {
  auto bias_at = [&](int64_t zone) {
    if (t.bias == nullptr) return Register{};
    const float* p = t.bias + zone * t.bias_stride + column;
    return kPart ? load_part<Register>(p, lanes) : load<Register>(p);
  };
  const Register fixed = kZones ? Register{} : bias_at(0);
  const float* product = t.product + column;
  Out* output = t.output + column;
  auto row = [&](int64_t r) {
    return activate<kind>(load<Register>(product + r * t.product_stride) + (kZones ? bias_at(t.zone[r]) : fixed),
                          slope);
  };
  // A masked store costs tens of cycles where it crosses a cache line. Where rows lie next to each other a whole vector
  // will do: what it spills into the next rows is written later, if this column comes first and the rows in order.
  const bool tight = t.units == t.output_stride;
  const int64_t whole = tight ? t.rows - (column + kRegisterLanes + t.units - 1) / t.units : 0;
  UsageSums sums{};
  if (kUsage) sums.shift = row(t.rows / 2);
  for (int64_t r = 0; r < t.rows; ++r, output += t.output_stride) {
    const Register y = row(r);
    if (kPart && r >= whole) {
      store_part(output, y, lanes);
    } else {
      store(output, y);
    }
    if (kUsage) {
      const Register d = y - sums.shift;
      sums.magnitude += vabs(y);
      sums.deviation += d;
      sums.square += d * d;
    }
  }
  if (kUsage) add_usage(sums, t.rows, lanes, t.usage + column, t.usage_stride);
}

template <Activation kind, bool kUsage, bool kZones, typename Out>
void finish_tile(const EpilogueTileOf<Out>& t, float slope) {
  const Register slopes = splat<Register>(slope);
  const int64_t full = t.units / kRegisterLanes * kRegisterLanes;
  if (full < t.units) finish_column<kind, kUsage, kZones, true>(t, full, t.units - full, slopes);
  for (int64_t column = 0; column < full; column += kRegisterLanes) {
    finish_column<kind, kUsage, kZones, false>(t, column, kRegisterLanes, slopes);
  }
}

template <Activation kind, typename Out>
inline void finish_as(const EpilogueTileOf<Out>& t, float slope) {
  const bool zones = t.zone != nullptr && t.bias != nullptr;
  if (t.usage != nullptr) {
    zones ? finish_tile<kind, true, true>(t, slope) : finish_tile<kind, true, false>(t, slope);
  } else {
    zones ? finish_tile<kind, false, true>(t, slope) : finish_tile<kind, false, false>(t, slope);
  }
}

template <typename Out>
inline void epilogue(const EpilogueTileOf<Out>& t, const ActivationSpec& spec) {
  switch (spec.kind) {
    case Activation::none: return finish_as<Activation::none>(t, spec.slope);
    case Activation::relu: return finish_as<Activation::relu>(t, spec.slope);
    case Activation::leaky_relu: return finish_as<Activation::leaky_relu>(t, spec.slope);
    case Activation::gelu: return finish_as<Activation::gelu>(t, spec.slope);
    case Activation::gelu_tanh: return finish_as<Activation::gelu_tanh>(t, spec.slope);
    case Activation::silu: return finish_as<Activation::silu>(t, spec.slope);
    case Activation::tanh: return finish_as<Activation::tanh>(t, spec.slope);
    case Activation::sigmoid: return finish_as<Activation::sigmoid>(t, spec.slope);
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
