// max_pool2d: channels-last max pooling. PyTorch's own also finds the indices of the maxima, which inference never
// reads.
#pragma once

#include "types.h"

namespace dynprune {

struct PoolAxis {
  int64_t in, out;  // sizes
  int64_t kernel, stride, padding, dilation;
};

struct MaxPool2dParams {
  const float* input;  // element (n, c, h, w) at n * stride_n + c + h * stride_h + w * stride_w
  int64_t stride_n, stride_h, stride_w;
  float* output;  // [batch, h.out, w.out, channels], tight; aliases nothing
  int64_t batch, channels;
  PoolAxis h, w;
};

// A task is one output row of one image.
static inline int64_t max_pool2d_tasks(const MaxPool2dParams& p) { return p.batch * p.h.out; }

}  // namespace dynprune
