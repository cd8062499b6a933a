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
  // After the first `run` rows, and after each `next_run` behind those, `gap` rows of the product are left out. No
  // gaps: 0 each.
  int64_t run, next_run, gap;
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
    case Activation::relu: return vrelu(x);
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

// What is never negative is its own magnitude.
constexpr bool never_negative(Activation kind) { return kind == Activation::relu || kind == Activation::sigmoid; }

template <Activation kind>
inline void add_usage(const UsageSums& s, int64_t rows, int64_t lanes, double* usage, int64_t stride) {
  const double count = static_cast<double>(rows);
  float shifts[kRegisterLanes], magnitudes[kRegisterLanes], deviations[kRegisterLanes], squares[kRegisterLanes];
  store(shifts, s.shift);
  store(magnitudes, s.magnitude);
  store(deviations, s.deviation);
  store(squares, s.square);
#pragma GCC ivdep
  for (int64_t j = 0; j < lanes; ++j) {
    const double shift = shifts[j], deviation = deviations[j], sum = count * shift + deviation;
    const double magnitude = never_negative(kind) ? sum : magnitudes[j];
    const double square = count * shift * shift + 2 * shift * deviation + squares[j];
    // NaN or infinity in this tile, or a sum that overflowed: it never enters.
    const bool finite = square + magnitude < __builtin_huge_val();
    usage[j] += finite ? magnitude : 0;
    usage[stride + j] += finite ? sum : 0;
    usage[2 * stride + j] += finite ? square : 0;
    usage[3 * stride + j] += finite ? count : 0;
  }
}

// As many as there are registers for. What has more to compute than to write gains nothing, and is much code.
constexpr int side_by_side(Activation kind) {
  const bool little = kind == Activation::none || kind == Activation::relu || kind == Activation::leaky_relu;
  return !little ? 1 : kRegisterLanes == kLanes ? 4 : 2;
}

// kColumns registers of units side by side, for all rows: a row's cache lines are written once, and the sums of one
// register need not wait for those of another. kPart: of a single one only some `lanes` are units.
template <Activation kind, bool kUsage, bool kZones, bool kPart, int kColumns, typename Out>
inline void finish_columns(const EpilogueTileOf<Out>& t, int64_t column, int64_t lanes, Register slope) {
  static_assert(!kPart || kColumns == 1);
  auto bias_at = [&](int64_t zone, int c) {
    if (t.bias == nullptr) return Register{};
    const float* p = t.bias + zone * t.bias_stride + column + c * kRegisterLanes;
    return kPart ? load_part<Register>(p, lanes) : load<Register>(p);
  };
  const float* const product = t.product + column;
  Out* output = t.output + column;
  Register fixed[kColumns];
  for (int c = 0; c < kColumns && !kZones; ++c) fixed[c] = bias_at(0, c);
  auto value = [&](const float* from, int64_t r, int c) {
    const Register bias = kZones ? bias_at(t.zone[r], c) : fixed[c];
    return activate<kind>(load<Register>(from + c * kRegisterLanes) + bias, slope);
  };
  // A masked store costs tens of cycles where it crosses a cache line. Where rows lie next to each other a whole vector
  // will do: what it spills into the next rows is written later, if this column comes first and the rows in order.
  const bool tight = t.units == t.output_stride;
  const int64_t whole = tight ? t.rows - (column + kRegisterLanes + t.units - 1) / t.units : 0;
  UsageSums sums[kColumns] = {};
  const int64_t middle = t.rows / 2, gaps = t.gap > 0 && middle >= t.run ? 1 + (middle - t.run) / t.next_run : 0;
  for (int c = 0; c < kColumns && kUsage; ++c) {
    sums[c].shift = value(product + (middle + gaps * t.gap) * t.product_stride, middle, c);
  }
  const float* from = product;
  int64_t left = t.gap > 0 ? t.run : t.rows;
  for (int64_t r = 0; r < t.rows; ++r, output += t.output_stride, from += t.product_stride, --left) {
    if (left == 0) {
      from += t.gap * t.product_stride;
      left = t.next_run;
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      const Register y = value(from, r, c);
      if (kPart && r >= whole) {
        store_part(output, y, lanes);
      } else {
        store(output + c * kRegisterLanes, y);
      }
      if (kUsage) {
        const Register d = y - sums[c].shift;
        if (!never_negative(kind)) sums[c].magnitude += vabs(y);
        sums[c].deviation += d;
        sums[c].square += d * d;
      }
    }
  }
  for (int c = 0; c < kColumns && kUsage; ++c) {
    add_usage<kind>(sums[c], t.rows, lanes, t.usage + column + c * kRegisterLanes, t.usage_stride);
  }
}

template <Activation kind, bool kUsage, bool kZones, typename Out>
void finish_tile(const EpilogueTileOf<Out>& t, float slope) {
  const Register slopes = splat<Register>(slope);
  const int64_t full = t.units / kRegisterLanes * kRegisterLanes;
  if (full < t.units) finish_columns<kind, kUsage, kZones, true, 1>(t, full, t.units - full, slopes);
  int64_t column = 0;
  const auto finish = [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    for (; column + kColumns * kRegisterLanes <= full; column += kColumns * kRegisterLanes) {
      finish_columns<kind, kUsage, kZones, false, kColumns>(t, column, kRegisterLanes, slopes);
    }
  };
  finish(Constant<side_by_side(kind)>{});
  if constexpr (side_by_side(kind) > 1) finish(Constant<1>{});
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
