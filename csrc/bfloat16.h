// What the ops share in bfloat16.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "cpu/bfloat16.h"

namespace dynprune {

// float32 panels as bfloat16 panels (kernels/cpu/types.h), of the same shape, and back.
at::Tensor paired(const at::Tensor& packed, int64_t depth);
at::Tensor unpaired(const at::Tensor& packed, int64_t depth);

inline uint16_t* bits(const at::Tensor& t) { return static_cast<uint16_t*>(t.data_ptr()); }

// Sets p.row_tile and runs the kernel on PyTorch's threads.
void run_bf16(Bf16Params& p, const std::optional<at::Tensor>& usage);

// A linear layer: rows [..., depth], packed weight, bias [units] or undefined, output [..., units].
void run_bf16(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias, at::Tensor& output,
              const ActivationSpec& activation, const std::optional<at::Tensor>& usage);

}  // namespace dynprune
