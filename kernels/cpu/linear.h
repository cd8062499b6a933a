// linear: output = activation(input * weight + bias), on packed weights.
#pragma once

#include "types.h"

namespace dynprune {

struct LinearParams {
  const float* input;            // [rows, input_stride]
  int64_t input_stride;          // in floats
  const int64_t* input_indices;  // [depth] columns of `input` to read; nullptr: the first `depth`
  const float* weight;           // packed, see types.h: ceil(units / kPanel) panels of [depth][width]
  const float* bias;             // [units]; nullptr: none
  float* output;                 // [rows, units], tight; aliases nothing
  int64_t rows, depth, units;
  int64_t row_tile;  // rows per task, at most kRowTile
  int64_t group;     // tiles that read a panel one after the other, at least 1
  bool streamed;     // the weights come from memory: fetch them ahead
  ActivationSpec activation;
};

// See tile_task in types.h: a range gathers a tile once, or reads a panel once for all tiles of a group.
static inline int64_t linear_tasks(const LinearParams& p) {
  return (p.rows + p.row_tile - 1) / p.row_tile * panel_count(p.units);
}

}  // namespace dynprune
