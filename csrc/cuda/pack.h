// Packing weights for the CUDA kernels: compact, and unit-major, the depth of a unit contiguous and beginning at a
// multiple of 16 bytes. The tensors have the shapes that packed weights have on the CPU, by their strides.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace dynprune::cuda {

// weight [out, in, kh, kw] -> [1, kh, kw, n_in, padded n_out], channels contiguous; groups as in csrc/pack.h.
at::Tensor pack_conv2d(const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                       const std::optional<at::Tensor>& input_indices, const std::optional<at::Tensor>& scale,
                       int64_t groups = 1);

// Columns `columns` of the last dimension of [..., width], as a kernel takes its input: [rows, padded], the first
// columns.numel() of them.
at::Tensor gather_columns(const at::Tensor& rows, const at::Tensor& columns);

}  // namespace dynprune::cuda
