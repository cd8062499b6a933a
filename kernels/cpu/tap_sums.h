// What pruned channels with known values add to a layer: for each unit and tap, weights times values over the channels.
#pragma once

#include "types.h"

namespace dynprune {

struct TapSumsParams {
  const float* weight;  // [*, channels, taps], row-major
  const int64_t* rows;  // [units] units of `weight`; nullptr: the first `units`
  const float* values;  // [channels]
  double* sums;         // [units, taps]
  int64_t units, channels, taps;
};

}  // namespace dynprune
