// lstm: the recurrence of one layer of one or two directions over whole sequences. What the inputs add to the gates is
// one product for all steps, which `linear` computes before.
#pragma once

#include "types.h"

namespace dynprune::cuda {

constexpr int kMostDirections = 2;

struct LstmDirection {
  const void* weight;       // [4 * units, weight_stride] recurrent; row 4 * u + gate: input, forget, cell, output
  int64_t weight_stride;    // in elements
  const float* gates;       // the inputs' share: element (step, row, 4 * u + gate) at the params' gates strides
  const float* bias_first;  // [4, units] at the first step of a sequence
  const float* bias;        // [4, units] at all others
  const float* first;       // [batch, first_stride] added to the gates [4, units] at the first step; nullptr: nothing
  int64_t first_stride;
  int64_t units, offset;  // number of units, and where they start in outputs and states
  const int* unit_count;  // [1] in device memory: how many of `units` there are; nullptr: all
  const float* product;  // of lstm_step: what the last states add to the gates, [batch, 4 * units] as the weight's rows
  bool reverse;          // from each sequence's own last step back
};

struct LstmParams {
  Number number;
  int64_t gates_stride_t, gates_stride_b;  // in floats
  const int64_t* lengths;                  // [batch] in device memory, 0 to steps; nullptr: all `steps`
  const void *hidden, *cell;               // [batch, total] initial states; nullptr: zero
  void* output;  // element (step, row, u) at step * output_stride_t + row * output_stride_b + u
  int64_t output_stride_t, output_stride_b;
  void *last_hidden, *last_cell;  // [batch, total]
  int64_t steps, batch, total;
  int64_t directions;
  LstmDirection direction[kMostDirections];
  double* usage;  // [kUsageRows, usage_stride], added to; nullptr: not wanted
  int64_t usage_stride;
  void* workspace;  // of the plan's size; its first `counter_bytes` are zero before a launch and left so
};

struct LstmPlan {
  TileShape shape;  // flat or small
  // Whether all steps are one launch whose blocks stay, each with its rows of the recurrent weight in shared memory,
  // and wait for one another after each step. Otherwise each step is a launch, which reads the weights anew.
  bool persistent;
  int64_t row_tiles, unit_tiles;
  int shared_bytes;
  int64_t state_stride;  // in elements: the most units of a direction, rounded up to whole chunks
  int64_t counter_bytes, state_bytes, cell_bytes, usage_bytes;  // of the workspace, in this order
  int64_t workspace() const { return counter_bytes + state_bytes + cell_bytes + usage_bytes; }
};

// shared_limit: bytes of shared memory that a block may have.
LstmPlan lstm_plan(const LstmParams& p, int multiprocessors, int shared_limit);

Status lstm(const LstmParams& p, const LstmPlan& plan, Stream stream);

// Where a library multiplies the states: a plan without products of its own, for which the caller computes, before
// each step, `product` from lstm_state, and launches lstm_step, then lstm_end. Counts of units play no part.
LstmPlan lstm_step_plan(const LstmParams& p);

// The hidden states that step `step` reads, [batch, plan.state_stride]; at step 0 they are `hidden`, if given.
void* lstm_state(const LstmParams& p, const LstmPlan& plan, int64_t step, int64_t direction);

Status lstm_step(const LstmParams& p, const LstmPlan& plan, int64_t step, Stream stream);

Status lstm_end(const LstmParams& p, const LstmPlan& plan, Stream stream);

}  // namespace dynprune::cuda
