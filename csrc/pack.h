// Packing weights for the kernels (layout: kernels/cpu/types.h). A bfloat16 weight is multiplied with its float32 scale
// in float32, and rounded once.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace dynprune {

// What pruned inputs are worth: a row of a weight is [in, taps], `values` [in] are multiplied with it, and the sums
// over the inputs go to `sums`, float64 [n_out, taps], without scale. Packing finds them on its way through the weight.
struct PrunedInputs {
  std::optional<at::Tensor> values, sums;  // both or neither
};

// weight [out, in] -> [1, n_in, padded n_out], storage in panels. `indices` [n_out] rows, strictly increasing;
// `columns` [n_in] distinct columns in any order; `scale` [out] factor of each row.
at::Tensor pack_linear(const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                       const std::optional<at::Tensor>& columns, const std::optional<at::Tensor>& scale,
                       const PrunedInputs& pruned = {});

// A packed weight [1, in, padded out] -> [in, out rounded up to 16], contiguous: each input's weights in one run.
at::Tensor pack_input_major(const at::Tensor& packed);

// weight [out, in, kh, kw] -> [1, kh, kw, n_in, padded n_out], storage in panels of depth (kh, kw, n_in); several
// groups -> [groups, kh, kw, in, padded out / groups], each as if alone, without index lists. Where each unit has one
// channel of its own (in = 1), all units are packed as one group.
at::Tensor pack_conv2d(const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                       const std::optional<at::Tensor>& input_indices, const std::optional<at::Tensor>& scale,
                       int64_t groups = 1, const PrunedInputs& pruned = {});

// Only the sums of pruned inputs of weight [out, in, kh, kw], for the units `indices`: float64 [n, kh * kw].
at::Tensor tap_sums(const at::Tensor& weight, const at::Tensor& values, const std::optional<at::Tensor>& indices);

}  // namespace dynprune
