// conv2d where every unit reads one channel: nothing to multiply matrices with, so plain sums of taps.
#pragma once

#include "conv2d.h"

namespace dynprune::cuda {

// Of the convolution, `channels`, `indices` and the counts of channels play no part; a tap of the weight is one number.
struct DepthwiseParams : Conv2dParams {
  const int64_t* unit_channels;  // [units] channel of `input` that a unit reads; nullptr: its own number
};

ProductPlan depthwise_plan(const DepthwiseParams& p);

Status depthwise(const DepthwiseParams& p, const ProductPlan& plan, Stream stream);

}  // namespace dynprune::cuda
