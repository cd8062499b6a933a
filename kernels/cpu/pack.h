// Packing of weight panels, for linear layers and convolutions alike.
#pragma once

#include "types.h"

namespace dynprune {

struct PackParams {
  const float* master;     // [*, row_stride], row-major
  int64_t row_stride;      // in floats
  const int64_t* rows;     // [units] rows of the master; nullptr: the first `units`
  const int64_t* columns;  // [depth] offsets within a row, in the packed order; nullptr: all, in their order
  const uint16_t* picked;  // bit c % 16 of element c / 16: whether column c is one of `columns`, which rise; or nullptr
  const float* scale;      // [*] factor of each row of the master (folded batch norm); nullptr: 1
  float* packed;           // [depth * padded_units(units)], see types.h
  int64_t units, depth;
};

// A task is one panel.
static inline int64_t pack_tasks(const PackParams& p) { return panel_count(p.units); }

}  // namespace dynprune
