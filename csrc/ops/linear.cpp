// dynprune::linear on the CPU. The schema stands in dynprune/ops/schemas.py, where installs without a compiler have it
// too.
#include "cpu/linear.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "bfloat16.h"
#include "output.h"
#include "pack.h"
#include "pick.h"
#include "run.h"

namespace dynprune {

namespace {

constexpr const char* kOp = "linear";

struct Operands {
  at::Tensor weight;               // packed
  std::optional<at::Tensor> bias;  // [units]
  bool gather;                     // whether input_indices pick columns of the input
  int64_t units;
};

// A packed weight is taken as it is; rows and columns of a master are packed for this one call.
Operands resolve(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                 const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices) {
  const int64_t width = input.size(-1);
  if (weight.dim() == 3) {
    DYNPRUNE_EXPECT(weight.size(0) == 1 && weight.is_contiguous(), kOp, "a packed weight [1, in, padded out]",
                    weight.sizes());
    DYNPRUNE_EXPECT(!indices.has_value(), kOp, "no indices beside a packed weight", indices->sizes());
    DYNPRUNE_EXPECT(bias.has_value() && bias->dim() == 1 && padded_units(bias->numel()) == weight.size(2), kOp,
                    c10::str("a bias [n] with n rounded up to ", weight.size(2), " beside a packed weight"),
                    bias.has_value() ? c10::str(bias->sizes()) : "none");
    const int64_t depth = input_indices.has_value() ? input_indices->numel() : width;
    DYNPRUNE_EXPECT(depth == weight.size(1), kOp, c10::str("an input with ", weight.size(1), " (active) features"),
                    depth);
    return {weight, bias, width != depth, bias->numel()};
  }
  DYNPRUNE_EXPECT(weight.dim() == 2, kOp, "a weight [out, in] or packed [1, in, padded out]", weight.sizes());
  const int64_t depth = input_indices.has_value() ? input_indices->numel() : weight.size(1);
  DYNPRUNE_EXPECT(width == weight.size(1) || width == depth, kOp,
                  c10::str("an input with ", weight.size(1), " features, or the ", depth, " of input_indices"), width);
  if (bias.has_value()) {
    DYNPRUNE_EXPECT(bias->dim() == 1 && bias->size(0) == weight.size(0), kOp, c10::str("a bias [", weight.size(0), "]"),
                    bias->sizes());
  }
  if (indices.has_value()) expect_indices(kOp, "indices", *indices, weight.size(0));
  if (input_indices.has_value()) expect_indices(kOp, "input_indices", *input_indices, weight.size(1));
  at::Tensor packed = pack_linear(weight, indices, input_indices, std::nullopt);
  std::optional<at::Tensor> chosen = bias;
  if (bias.has_value() && indices.has_value()) chosen = bias->index_select(0, *indices);
  return {packed, chosen, width != depth, indices.has_value() ? indices->numel() : weight.size(0)};
}

// Few rows read far more weights than they do arithmetic: where most inputs are zero, as after a ReLU, the others'
// weights are all that is read. Returns whether it did the work.
bool skip_inputs(const LinearParams& p, const std::optional<at::Tensor>& usage) {
  constexpr int64_t kLeastWeights = 256 * 256;
  // Of the inputs; above, reading straight through is as fast, but for weights that come from memory, which this
  // kernel fetches ahead.
  const double kMostPicked = p.streamed ? 1.0 : 0.6;
  if (p.rows == 0 || p.rows > kSparseRows || p.input_indices != nullptr || p.depth * p.units < kLeastWeights) {
    return false;
  }
  const int64_t most = static_cast<int64_t>(kMostPicked * static_cast<double>(p.depth));
  const std::vector<int64_t> picked = pick_inputs(p.input, p.input_stride, p.rows, p.depth, 0.f, most);
  if (picked.empty()) return false;
  SparseInputParams s{};
  s.input = p.input;
  s.input_stride = p.input_stride;
  s.picked = picked.data();
  s.count = static_cast<int64_t>(picked.size());
  s.weight = p.weight;
  s.bias = p.bias;
  s.output = p.output;
  s.rows = p.rows;
  s.depth = p.depth;
  s.units = p.units;
  s.activation = p.activation;
  run_tasks(sparse_input_tasks(s), s.rows * s.count * s.units, s.units, usage,
            [&](double* sums, int64_t begin, int64_t end) { kernels().sparse_input(s, sums, begin, end); });
  return true;
}

}  // namespace

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices,
                  c10::string_view activation, double slope, std::optional<at::Tensor> usage) {
  expect_operands(kOp, input, weight, bias);
  DYNPRUNE_EXPECT(input.dim() >= 1, kOp, "an input [..., features]", input.sizes());
  const ActivationSpec spec = parse_activation(kOp, activation, slope);
  const Operands operands = resolve(input, weight, bias, indices, input_indices);
  if (usage.has_value()) expect_usage(kOp, *usage, operands.units);

  auto shape = input.sizes().vec();
  shape.back() = operands.units;
  at::Tensor output = empty_output(shape, input.options());
  const at::Tensor rows = input.dim() == 2 && input.stride(1) == 1 ? input : input.contiguous();
  const at::Tensor bias_tight = operands.bias.has_value() ? operands.bias->contiguous() : at::Tensor();

  if (input.scalar_type() == at::kBFloat16) {
    run_bf16(operands.gather ? rows.index_select(-1, *input_indices) : rows, operands.weight, bias_tight, output, spec,
             usage);
    return output;
  }
  LinearParams p{};
  p.input = rows.const_data_ptr<float>();
  p.input_stride = input.dim() == 2 ? rows.stride(0) : input.size(-1);
  if (operands.gather) p.input_indices = expect_indices(kOp, "input_indices", *input_indices, input.size(-1));
  p.weight = operands.weight.const_data_ptr<float>();
  p.bias = bias_tight.defined() ? bias_tight.const_data_ptr<float>() : nullptr;
  p.output = output.mutable_data_ptr<float>();
  p.rows = c10::multiply_integers(input.sizes().begin(), input.sizes().end() - 1);
  p.depth = operands.weight.size(1);
  p.units = operands.units;
  p.row_tile = row_tile(p.rows, panel_count(p.units));
  p.activation = spec;
  constexpr int64_t kCachedWeights = 2 * 1024 * 1024;  // what L2 and a share of L3 hold
  p.streamed = p.depth * p.units > kCachedWeights;
  if (skip_inputs(p, usage)) return output;
  run_tasks(linear_tasks(p), p.rows * p.depth * p.units, p.units, usage,
            [&](double* sums, int64_t begin, int64_t end) { kernels().linear(p, sums, begin, end); });
  return output;
}

TORCH_LIBRARY_IMPL(dynprune, CPU, m) { m.impl("linear", TORCH_FN(linear)); }

}  // namespace dynprune
