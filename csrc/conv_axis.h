// The geometry of a convolution, checked: for every backend.
#pragma once

#include "checks.h"
#include "cpu/conv2d.h"

namespace dynprune {

inline ConvAxis conv_axis(const char* op, const char* name, int64_t in, int64_t kernel, int64_t stride, int64_t padding,
                          int64_t dilation) {
  DYNPRUNE_EXPECT(stride > 0 && dilation > 0 && padding >= 0 && kernel > 0, op,
                  "positive kernel, stride and dilation and padding of at least 0", kernel, ", ", stride, ", ",
                  dilation, ", ", padding);
  const int64_t reach = (kernel - 1) * dilation + 1;
  DYNPRUNE_EXPECT(in + 2 * padding >= reach, op, c10::str("a padded input at least ", reach, " ", name),
                  in + 2 * padding);
  return {in, (in + 2 * padding - reach) / stride + 1, kernel, stride, padding, dilation, 1, 1};
}

}  // namespace dynprune
