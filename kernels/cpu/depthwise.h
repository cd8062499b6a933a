// Convolution where every unit reads one channel of its own: no sum over channels, so the lanes of a vector are
// channels and the input is what there is to reuse.
#pragma once

#include "conv2d.h"

namespace dynprune::DYNPRUNE_ISA {

// As conv2d_range.
void depthwise_range(const Conv2dParams& p, double* usage, int64_t begin, int64_t end);

}  // namespace dynprune::DYNPRUNE_ISA
