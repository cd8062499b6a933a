// Packing weights for the CUDA kernels: compact, and unit-major, the depth of a unit contiguous and beginning at a
// multiple of 16 bytes. The tensors have the shapes that packed weights have on the CPU, by their strides.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace dynprune::cuda {

// weight [out, in] -> [1, n_in, padded n_out], strides (., 1, padded depth).
at::Tensor pack_linear(const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                       const std::optional<at::Tensor>& columns, const std::optional<at::Tensor>& scale);

// weight [out, in, kh, kw] -> [1, kh, kw, n_in, padded n_out], channels contiguous; groups as in csrc/pack.h.
at::Tensor pack_conv2d(const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                       const std::optional<at::Tensor>& input_indices, const std::optional<at::Tensor>& scale,
                       int64_t groups = 1);

// weight_ih [4 * hidden, in] and weight_hh [4 * hidden, hidden], gates in PyTorch's order -> [4 * n, padded depth +
// padded n], row 4 * unit + gate, the inputs' columns first.
at::Tensor pack_lstm(const at::Tensor& weight_ih, const at::Tensor& weight_hh, const std::optional<at::Tensor>& indices,
                     const std::optional<at::Tensor>& columns);

// Columns `columns` of the last dimension of [..., width], as a kernel takes its input: [rows, padded], the first
// columns.numel() of them.
at::Tensor gather_columns(const at::Tensor& rows, const at::Tensor& columns);

}  // namespace dynprune::cuda
