// linear: output = activation(input * weight^T + bias).
#pragma once

#include "types.h"

namespace dynprune::cuda {

struct LinearParams {
  Number number;
  const void* input;     // [rows, input_stride], the depth contiguous
  int64_t input_stride;  // in elements
  const void* weight;    // [units, weight_stride], the depth contiguous
  int64_t weight_stride;
  const int64_t* indices;  // [units] rows of `weight` and of `bias`; nullptr: the first `units`
  const float* bias;       // [units]; nullptr: none
  void* output;            // [rows, output_stride] of the input's type, or float32; aliases nothing
  int64_t output_stride;
  bool wide_output;  // float32 beside operands of half the width
  int64_t rows, depth, units;
  const int *depth_count, *unit_count;  // [1] in device memory: how many of `depth` and `units` there are; nullptr: all
  ActivationSpec activation;
  double* usage;  // [kUsageRows, usage_stride], added to; nullptr: not wanted
  int64_t usage_stride;
  void* workspace;  // of the plan's size; nullptr if that is 0
};

ProductPlan linear_plan(const LinearParams& p, int multiprocessors);

// Needs no synchronisation; `plan` is linear_plan's of the same sizes.
Status linear(const LinearParams& p, const ProductPlan& plan, Stream stream);

}  // namespace dynprune::cuda
