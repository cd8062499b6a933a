// Memory for what the ops return, and for packed weights.
#pragma once

#include <ATen/ATen.h>

namespace dynprune {

// An uninitialised tensor. Large ones come from memory that earlier outputs gave back: the C library returns freed
// blocks of this size to the system, and touching every page anew costs more than a pruned layer's products.
at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options,
                        at::MemoryFormat format = at::MemoryFormat::Contiguous);

}  // namespace dynprune
