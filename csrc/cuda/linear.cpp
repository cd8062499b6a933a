// dynprune::linear and dynprune::sparse_input_linear on a GPU. The schemas stand in dynprune/ops/schemas.py.
#include "cuda/linear.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "cuda/context.h"
#include "cuda/pack.h"
#include "cuda/sparse_input.h"
#include "run.h"

namespace dynprune::cuda {

namespace {

struct LinearOperands {
  at::Tensor weight;               // [units, depth], the depth contiguous
  std::optional<at::Tensor> bias;  // [units]
  const int64_t* indices;          // rows of both; nullptr: all
  int64_t units;
};

LinearOperands resolve(const char* op, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices) {
  if (weight.dim() == 3) {
    DYNPRUNE_EXPECT(weight.size(0) == 1, op, "a packed weight [1, in, padded out]", weight.sizes());
    DYNPRUNE_EXPECT(!indices.has_value(), op, "no indices beside a packed weight", indices->sizes());
    DYNPRUNE_EXPECT(bias.has_value() && bias->dim() == 1 && padded_units(bias->numel()) == weight.size(2), op,
                    c10::str("a bias [n] with n rounded up to ", weight.size(2), " beside a packed weight"),
                    bias.has_value() ? c10::str(bias->sizes()) : "none");
    return {weight[0].t().contiguous(), bias, nullptr, bias->numel()};
  }
  DYNPRUNE_EXPECT(weight.dim() == 2, op, "a weight [out, in] or packed [1, in, padded out]", weight.sizes());
  if (bias.has_value()) {
    DYNPRUNE_EXPECT(bias->dim() == 1 && bias->size(0) == weight.size(0), op, c10::str("a bias [", weight.size(0), "]"),
                    bias->sizes());
  }
  at::Tensor compact = weight.stride(1) == 1 || weight.size(1) < 2 ? weight : weight.contiguous();
  if (input_indices.has_value()) compact = gather_columns(compact, *input_indices);
  const int64_t* rows = indices.has_value() ? expect_index_list(op, "indices", *indices) : nullptr;
  // An empty list has no address.
  return {compact, bias, rows, indices.has_value() ? indices->numel() : weight.size(0)};
}

// The one place that decides for cuBLAS, where the host knows the counts: products so large that Hopper's and
// Blackwell's own tensor core instructions, which our kernels do not use, should outweigh the passes that a library
// product leaves to do. Not measured.
bool library_serves(const LinearParams& p) {
  constexpr int64_t kLarge = int64_t{1} << 31;  // multiply-adds
  const bool simple = p.activation.kind == Activation::none || p.activation.kind == Activation::relu;
  const bool counted = p.unit_count != nullptr || p.depth_count != nullptr;
  return simple && !counted && p.usage == nullptr && p.indices == nullptr && p.rows * p.units * p.depth >= kLarge;
}

at::Tensor library_linear(const at::Tensor& rows, const LinearOperands& o, Activation activation) {
  const at::Tensor weight = o.weight.narrow(0, 0, o.units).t();
  at::Tensor y = o.bias.has_value() ? at::addmm(o.bias->to(rows.scalar_type()), rows, weight) : at::mm(rows, weight);
  return activation == Activation::relu ? y.relu_() : y;
}

struct Counts {
  const int *units, *depth;  // [1] on the device, or nullptr
};

template <class Params>
void set_common(Params& p, const at::Tensor& rows, const at::Tensor& output, const at::Tensor& bias,
                const ActivationSpec& activation, const std::optional<at::Tensor>& usage, const Counts& counts) {
  p.input = rows.const_data_ptr();
  p.input_stride = rows.stride(0);
  p.rows = rows.size(0);
  p.depth = rows.size(1);
  p.output = output.mutable_data_ptr();
  p.output_stride = output.size(-1);
  p.units = output.size(-1);
  p.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  p.activation = activation;
  p.usage = usage.has_value() ? usage->mutable_data_ptr<double>() : nullptr;
  p.usage_stride = usage.has_value() ? usage->stride(0) : 0;
  p.unit_count = counts.units;
  p.depth_count = counts.depth;
}

// weight: [units, depth] in any strides.
void run_sparse(const Context& context, const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& output,
                const at::Tensor& bias, double threshold, const ActivationSpec& activation,
                const std::optional<at::Tensor>& usage, const Counts& counts) {
  SparseInputParams p{};
  p.number = number_of(rows.scalar_type(), false);
  set_common(p, rows, output, bias, activation, usage, counts);
  p.weight = weight.const_data_ptr();
  p.stride_k = weight.stride(1);
  p.stride_u = weight.stride(0);
  p.threshold = static_cast<float>(threshold);
  const ProductPlan plan = sparse_input_plan(p, context.multiprocessors());
  const at::Tensor workspace = context.workspace(plan.workspace(), plan.counter_bytes);
  p.workspace = data_or_null(workspace);
  context.expect(sparse_input(p, plan, context.stream()));
}

}  // namespace

at::Tensor linear_op(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices,
                     c10::string_view activation, double slope, double input_threshold,
                     const std::optional<at::Tensor>& input_major, std::optional<at::Tensor> usage,
                     const std::optional<at::Tensor>& unit_count, const std::optional<at::Tensor>& depth_count) {
  constexpr const char* kOp = "linear";
  expect_operands(kOp, input, weight, bias, at::kCUDA);
  DYNPRUNE_EXPECT(input.dim() >= 1, kOp, "an input [..., features]", input.sizes());
  DYNPRUNE_EXPECT(input_threshold >= 0, kOp, "an input_threshold of at least 0", input_threshold);
  const Context context(kOp, input);
  const ActivationSpec spec = parse_activation(kOp, activation, slope);
  const Counts counts{expect_count(kOp, "unit_count", unit_count), expect_count(kOp, "depth_count", depth_count)};
  const LinearOperands o = resolve(kOp, weight, bias, indices, input_indices);
  if (usage.has_value()) expect_usage(kOp, *usage, o.units, at::kCUDA);
  const int64_t depth = o.weight.size(1), width = input.size(-1);
  const bool compact = input_indices.has_value() && width != depth;
  if (compact) expect_index_list(kOp, "input_indices", *input_indices);
  DYNPRUNE_EXPECT((compact ? input_indices->numel() : width) == depth, kOp,
                  c10::str("an input with ", depth, " (active) features"), width);
  const at::Tensor tight = input.dim() == 2 && input.stride(1) == 1 ? input : input.contiguous();
  const at::Tensor flat =
      tight.dim() == 2 ? tight
                       : tight.view({c10::multiply_integers(tight.sizes().begin(), tight.sizes().end() - 1), width});
  const at::Tensor rows = compact ? gather_columns(flat, *input_indices) : flat;
  const at::Tensor bias_tight = o.bias.has_value() ? o.bias->contiguous() : at::Tensor();
  auto shape = input.sizes().vec();
  shape.back() = o.units;

  if (rows.size(0) <= kSparseRows && o.indices == nullptr && (input_threshold > 0 || input_major.has_value())) {
    if (input_major.has_value()) {
      DYNPRUNE_EXPECT(input_major->dim() == 2 && input_major->size(0) == depth && input_major->size(1) >= o.units &&
                          input_major->is_contiguous() && input_major->scalar_type() == input.scalar_type(),
                      kOp, c10::str("a contiguous input_major [", depth, ", out]"), input_major->sizes());
    }
    const at::Tensor output = at::empty(shape, input.options());
    run_sparse(context, rows, input_major.has_value() ? input_major->t() : o.weight, output, bias_tight,
               input_threshold, spec, usage, counts);
    return output;
  }
  LinearParams p{};
  p.number = number_of(input.scalar_type(),
                       at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
                           at::Float32Precision::TF32);
  p.indices = o.indices;
  p.units = o.units;
  p.activation = spec;
  p.rows = rows.size(0);
  p.depth = depth;
  p.unit_count = counts.units;
  p.depth_count = counts.depth;
  if (!usage.has_value() && library_serves(p)) return library_linear(rows, o, spec.kind).view(shape);
  const at::Tensor output = at::empty(shape, input.options());
  set_common(p, rows, output, bias_tight, spec, usage, counts);
  p.weight = o.weight.const_data_ptr();
  p.weight_stride = o.weight.stride(0);
  const ProductPlan plan = linear_plan(p, context.multiprocessors());
  const at::Tensor workspace = context.workspace(plan.workspace(), plan.counter_bytes);
  p.workspace = data_or_null(workspace);
  context.expect(linear(p, plan, context.stream()));
  return output;
}

at::Tensor sparse_input_linear_op(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                                  double threshold, c10::string_view activation, double slope,
                                  std::optional<at::Tensor> usage, const std::optional<at::Tensor>& unit_count,
                                  const std::optional<at::Tensor>& depth_count) {
  constexpr const char* kOp = "sparse_input_linear";
  expect_operands(kOp, input, weight, bias, at::kCUDA);
  DYNPRUNE_EXPECT(input.dim() == 2 && input.size(0) <= kSparseRows, kOp,
                  c10::str("an input [rows, features] of at most ", kSparseRows, " rows"), input.sizes());
  DYNPRUNE_EXPECT(bias.dim() == 1, kOp, "a bias [units]", bias.sizes());
  const std::vector<int64_t> packed{1, input.size(1), padded_units(bias.numel())};
  DYNPRUNE_EXPECT(weight.sizes() == at::IntArrayRef(packed), kOp, c10::str("a packed weight ", at::IntArrayRef(packed)),
                  weight.sizes());
  DYNPRUNE_EXPECT(threshold >= 0, kOp, "a threshold of at least 0", threshold);
  if (usage.has_value()) expect_usage(kOp, *usage, bias.numel(), at::kCUDA);
  const Context context(kOp, input);
  const at::Tensor rows = input.stride(1) == 1 ? input : input.contiguous();
  const at::Tensor output = at::empty({input.size(0), bias.numel()}, input.options());
  run_sparse(context, rows, weight[0].t(), output, bias.contiguous(), threshold,
             parse_activation(kOp, activation, slope), usage,
             {expect_count(kOp, "unit_count", unit_count), expect_count(kOp, "depth_count", depth_count)});
  return output;
}

TORCH_LIBRARY_IMPL(dynprune, CUDA, m) {
  m.impl("linear", TORCH_FN(linear_op));
  m.impl("sparse_input_linear", TORCH_FN(sparse_input_linear_op));
}

}  // namespace dynprune::cuda
