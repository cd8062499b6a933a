// sparse_input_linear: a linear layer for few rows that reads only the weights of inputs that are not (nearly) zero.
#pragma once

#include "linear.h"

namespace dynprune {

constexpr int64_t kSparseRows = 8;
constexpr int64_t kInputMajorAlign = 16;

// Of the layer, `rows` are at most kSparseRows, and `input_indices`, `row_tile` and `streamed` play no part.
struct SparseInputParams : LinearParams {
  const int64_t* picked;  // [count] inputs to read, increasing
  int64_t count;
  const float* input_major;  // [depth, input_major_units(units)], what is surplus zero; nullptr: `weight` is read
};

static constexpr int64_t input_major_units(int64_t units) {
  return (units + kInputMajorAlign - 1) / kInputMajorAlign * kInputMajorAlign;
}

// A task is one panel.
static inline int64_t sparse_input_tasks(const SparseInputParams& p) { return panel_count(p.units); }

}  // namespace dynprune
