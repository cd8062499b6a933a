// sparse_input_linear: a linear layer for few rows that reads only the weights of inputs that are not (nearly) zero.
#pragma once

#include "types.h"

namespace dynprune {

constexpr int64_t kSparseRows = 8;

struct SparseInputParams {
  const float* input;     // [rows, input_stride]
  int64_t input_stride;   // in floats
  const int64_t* picked;  // [count] inputs to read, increasing
  int64_t count;
  const float* weight;  // packed, see types.h
  const float* bias;    // [units]; nullptr: none
  float* output;        // [rows, units], tight; aliases nothing
  int64_t rows, depth, units;
  ActivationSpec activation;
};

// A task is one panel.
static inline int64_t sparse_input_tasks(const SparseInputParams& p) { return panel_count(p.units); }

}  // namespace dynprune
