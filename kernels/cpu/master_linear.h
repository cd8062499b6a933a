// linear on the rows and columns that index lists pick from the master weight, read where they lie: no packing.
#pragma once

#include "linear.h"

namespace dynprune {

// Of the layer, `weight`, `row_tile`, `group` and `streamed` play no part.
struct MasterLinearParams : LinearParams {
  const float* master;       // [*, master_stride], row-major
  int64_t master_stride;     // in floats
  const int64_t* unit_rows;  // [units] rows of the master; nullptr: the first `units`
  const int64_t* columns;    // [depth] columns of the master, increasing; nullptr: the first `depth`
};

// A task is a tile of kRowTile rows times kPanel units. Tasks of one tile are neighbours: a range transposes its input
// once.
static inline int64_t master_linear_tasks(const MasterLinearParams& p) {
  return (p.rows + kRowTile - 1) / kRowTile * panel_count(p.units);
}

}  // namespace dynprune
