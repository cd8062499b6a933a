// lstm: one layer of one or two directions over whole sequences.
#pragma once

#include "types.h"

namespace dynprune {

// Units of a panel; its columns are the four gates of these units: input, forget, cell, output.
constexpr int64_t kLstmUnits = kPanel / 4;
constexpr int64_t kMostDirections = 2;

static constexpr int64_t lstm_panels(int64_t units) { return (units + kLstmUnits - 1) / kLstmUnits; }

struct LstmDirection {
  const float* weight;      // [panels, depth + units, kPanel], the input's rows first
  const float* bias_first;  // [4, units] at the first step of a sequence
  const float* bias;        // [4, units] at all others
  const float* first;       // [batch, first_stride] added to the gates [4, units] at the first step; nullptr: nothing
  int64_t first_stride;
  int64_t units, offset;  // number of units, and where they start in outputs and states
  bool reverse;           // from each sequence's own last step back
};

struct LstmParams {
  const float* input;  // element (step, row, k) at step * stride_t + row * stride_b + k
  int64_t stride_t, stride_b;
  const int64_t* lengths;      // [batch], 0 to steps; nullptr: all `steps`
  const int64_t* order;        // [batch] rows, the longest first
  const float *hidden, *cell;  // [batch, total] initial states; nullptr: zero
  float* output;               // element (step, row, u) at step * output_stride_t + row * output_stride_b + u
  int64_t output_stride_t, output_stride_b;
  float *last_hidden, *last_cell;  // [batch, total]
  int64_t steps, batch, depth, total;
  int64_t directions;
  LstmDirection direction[kMostDirections];
  int64_t slices;  // of the batch; slice s has rows order[s], order[s + slices], ...
};

// A task is one slice of one direction, over all steps; the slices of a direction are neighbours.
static inline int64_t lstm_tasks(const LstmParams& p) { return p.directions * p.slices; }

}  // namespace dynprune
