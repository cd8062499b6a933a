#include "tap_sums.h"

#include "kernels.h"
#include "scratch.h"
#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

// A unit's weights are read once, as they lie: sixteen channels of all taps at a time, whose products are added up
// position by position and told apart at the end. A range is one of units.
void tap_sums_range(const TapSumsParams& p, int64_t begin, int64_t end) {
  const int64_t row_floats = p.channels * p.taps, period = kLanes * p.taps;
  float* spread = scratch(0, row_floats);  // each channel's value at every of its taps
  float* partial = scratch(1, period);
  for (int64_t c = 0; c < p.channels; ++c) {
    for (int64_t t = 0; t < p.taps; ++t) spread[c * p.taps + t] = p.values[c];
  }
  for (int64_t unit = begin; unit < end; ++unit) {
    const float* row = p.weight + (p.rows == nullptr ? unit : p.rows[unit]) * row_floats;
    zero(partial, period);
    for (int64_t first = 0; first < row_floats; first += period) {
      const int64_t count = min_of(period, row_floats - first);
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        store(partial + i, load(partial + i) + load(row + first + i) * load(spread + first + i));
      }
      for (; i < count; ++i) partial[i] += row[first + i] * spread[first + i];
    }
    double* sums = p.sums + unit * p.taps;
    for (int64_t t = 0; t < p.taps; ++t) sums[t] = 0.0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      for (int64_t t = 0; t < p.taps; ++t) sums[t] += static_cast<double>(partial[lane * p.taps + t]);
    }
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
