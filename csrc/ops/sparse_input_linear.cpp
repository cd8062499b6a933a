// dynprune::sparse_input_linear on the CPU. The schema stands in dynprune/ops/schemas.py.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "output.h"
#include "sparse_input.h"

namespace dynprune {

namespace {

constexpr const char* kOp = "sparse_input_linear";

}  // namespace

at::Tensor sparse_input_linear(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                               double threshold, c10::string_view activation, double slope,
                               std::optional<at::Tensor> usage, const std::optional<at::Tensor>& unit_count,
                               const std::optional<at::Tensor>& depth_count) {
  expect_no_counts(kOp, unit_count, depth_count);
  expect_float(kOp, "input", input);
  expect_float(kOp, "weight", weight);
  expect_float(kOp, "bias", bias);
  DYNPRUNE_EXPECT(input.dim() == 2 && input.size(0) <= kSparseRows, kOp,
                  c10::str("an input [rows, features] of at most ", kSparseRows, " rows"), input.sizes());
  DYNPRUNE_EXPECT(bias.dim() == 1, kOp, "a bias [units]", bias.sizes());
  const std::vector<int64_t> packed{1, input.size(1), padded_units(bias.numel())};
  DYNPRUNE_EXPECT(weight.sizes() == at::IntArrayRef(packed) && weight.is_contiguous(), kOp,
                  c10::str("a contiguous packed weight ", at::IntArrayRef(packed)), weight.sizes());
  DYNPRUNE_EXPECT(threshold >= 0, kOp, "a threshold of at least 0", threshold);
  if (usage.has_value()) expect_usage(kOp, *usage, bias.numel());
  const at::Tensor rows = input.stride(1) == 1 ? input : input.contiguous(), bias_tight = bias.contiguous();
  at::Tensor output = empty_output({input.size(0), bias.numel()}, input.options());
  LinearParams p{};
  p.input = rows.const_data_ptr<float>();
  p.input_stride = rows.stride(0);
  p.weight = weight.const_data_ptr<float>();
  p.bias = bias_tight.const_data_ptr<float>();
  p.output = output.mutable_data_ptr<float>();
  p.rows = input.size(0);
  p.depth = input.size(1);
  p.units = bias.numel();
  p.activation = parse_activation(kOp, activation, slope);
  run_picked(p, *pick_inputs(p, static_cast<float>(threshold), p.depth), nullptr, usage);
  return output;
}

TORCH_LIBRARY_IMPL(dynprune, CPU, m) { m.impl("sparse_input_linear", TORCH_FN(sparse_input_linear)); }

}  // namespace dynprune
