// Packing of weight panels, for linear layers and convolutions alike, and what pruned inputs with known values add.
#pragma once

#include "types.h"

namespace dynprune {

struct PackParams {
  const float* master;    // [*, row_stride], row-major; a row is [channels, taps]
  int64_t row_stride;     // in floats
  const int64_t* rows;    // [units] rows of the master; nullptr: the first `units`
  const int32_t* places;  // [row_stride] place of each element of a row in the packed depth, -1: none; nullptr: its own
  const float* scale;     // [*] factor of each row of the master (folded batch norm); nullptr: 1
  float* packed;          // [depth * padded_units(units)], see types.h; nullptr: only sums are wanted
  const float* values;    // [row_stride / taps] of each channel; nullptr: no sums are wanted
  double* sums;           // [units, taps] weights times values over the channels, without scale
  int64_t units, depth, taps;
  bool large;  // the packed weight is 64-byte aligned, and leaves the caches anyway: it is written past them
};

// A task is one panel.
static inline int64_t pack_tasks(const PackParams& p) { return panel_count(p.units); }

}  // namespace dynprune
