// sparse_input_linear: a linear layer for few rows that reads only the weights of inputs that are not (nearly) zero.
#pragma once

#include "types.h"

namespace dynprune::cuda {

constexpr int kSparseRows = 8;

struct SparseInputParams {
  Number number;         // tf32 counts as f32: nothing here runs on tensor cores
  const void* input;     // [rows, input_stride], the depth contiguous; rows at most kSparseRows
  int64_t input_stride;  // in elements
  const void* weight;    // weight of input k for unit u at k * stride_k + u * stride_u; fast where stride_u is 1
  int64_t stride_k, stride_u;
  const float* bias;  // [units]; nullptr: none
  void* output;       // [rows, output_stride]; aliases nothing
  int64_t output_stride;
  int64_t rows, depth, units;
  const int *depth_count, *unit_count;  // [1] in device memory: how many of those there are; nullptr: all
  float threshold;                      // an input is left out where |x| is at most this in every row
  ActivationSpec activation;
  double* usage;  // [kUsageRows, usage_stride], added to; nullptr: not wanted
  int64_t usage_stride;
  void* workspace;  // of the plan's size; nullptr if that is 0
};

ProductPlan sparse_input_plan(const SparseInputParams& p, int multiprocessors);

Status sparse_input(const SparseInputParams& p, const ProductPlan& plan, Stream stream);

}  // namespace dynprune::cuda
