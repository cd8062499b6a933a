// Convolution with kernels three columns wide by Winograd's minimal filtering F(2, 3) along the width (Lavin and Gray
// 2016): two output pixels from four products in place of six. Along the height it is the plain sum over kernel rows,
// so any height, stride and dilation in that direction will do. The weights are transformed for each range anew, into
// scratch memory: plans keep one copy of the weights only.
#pragma once

#include "conv2d.h"

namespace dynprune::DYNPRUNE_ISA {

// Whether the saved products outweigh the transforms.
bool winograd_pays(const Conv2dParams& p, int64_t threads);

// As conv2d_range.
void winograd_range(const Conv2dParams& p, double* usage, int64_t begin, int64_t end);

}  // namespace dynprune::DYNPRUNE_ISA
