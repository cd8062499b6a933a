// conv2d: channels-last convolution as a product whose rows are pixels and whose depth goes by taps (implicit GEMM).
#pragma once

#include "../cpu/conv2d.h"
#include "types.h"

namespace dynprune::cuda {

struct Conv2dParams : Convolution {  // stride_c is 1
  Number number;
  const void* input;
  const void* weight;               // [units, unit_stride] of [kernel_h * kernel_w, tap_stride], channels contiguous
  int64_t unit_stride, tap_stride;  // in elements
  const int64_t* indices;           // [units] rows of `weight` and of `bias`; nullptr: the first `units`
  void* output;                     // [batch, h.out, w.out, pixel_units] at the first unit; aliases nothing
  const int *channel_count, *unit_count;  // [1] in device memory: how many of those there are; nullptr: all
  double* usage;                          // [kUsageRows, usage_stride], added to; nullptr: not wanted
  int64_t usage_stride;
  void* workspace;  // of the plan's size; nullptr if that is 0
};

ProductPlan conv2d_plan(const Conv2dParams& p, int multiprocessors);

// Images, rows, columns and taps are counted in 32 bits, as are the output's pixels.
Status conv2d(const Conv2dParams& p, const ProductPlan& plan, Stream stream);

}  // namespace dynprune::cuda
