// dynprune::lstm on a GPU. The schema stands in dynprune/ops/schemas.py.
#include "cuda/lstm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/context.h"
#include "cuda/linear.h"

namespace dynprune::cuda {

namespace {

constexpr const char* kOp = "lstm";

// Units of each direction, from the shapes of what belongs to it.
void fill_direction(LstmParams& p, int64_t index, int64_t depth, const at::Tensor& weight, const at::Tensor& bias) {
  expect_float(kOp, "bias", bias, at::kCUDA);
  expect_device(kOp, "weight", weight, at::kCUDA);
  DYNPRUNE_EXPECT(bias.dim() == 3 && bias.size(0) == 2 && bias.size(1) == 4 && bias.is_contiguous(), kOp,
                  "a contiguous bias [2, 4, units]", bias.sizes());
  LstmDirection& d = p.direction[index];
  d.units = bias.size(2);
  const int64_t own_columns = padded_depth(depth, p.number);
  const std::vector<int64_t> wanted{4 * d.units, own_columns + padded_depth(d.units, p.number)};
  DYNPRUNE_EXPECT(weight.sizes() == at::IntArrayRef(wanted) && weight.is_contiguous(), kOp,
                  c10::str("a contiguous weight ", at::IntArrayRef(wanted), ", as pack_lstm lays it out on a GPU"),
                  weight.sizes());
  d.weight = static_cast<const char*>(weight.const_data_ptr()) + own_columns * element_bytes(p.number);
  d.weight_stride = wanted[1];
  d.bias_first = bias.const_data_ptr<float>();
  d.bias = d.bias_first + 4 * d.units;
  d.offset = p.total;
  d.reverse = index == 1;
  p.total += d.units;
}

at::Tensor state(const LstmParams& p, const char* name, const std::optional<at::Tensor>& given, at::ScalarType type) {
  if (!given.has_value()) return {};
  expect_device(kOp, name, *given, at::kCUDA);
  DYNPRUNE_EXPECT(given->scalar_type() == type, kOp, c10::str("a ", name, " state of ", type), given->scalar_type());
  DYNPRUNE_EXPECT(given->dim() == 2 && given->size(0) == p.batch && given->size(1) == p.total, kOp,
                  c10::str("a ", name, " state [", p.batch, ", ", p.total, "]"), given->sizes());
  return given->contiguous();
}

// What the inputs add to the gates of one direction, for all steps at once: to gates [rows of the input, 4 * total], at
// the direction's own columns.
void add_inputs(const Context& context, const LstmParams& p, const LstmDirection& d, const at::Tensor& rows,
                const at::Tensor& weight, const at::Tensor& gates, const int* depth_count) {
  LinearParams l{};
  l.number = p.number;
  l.input = rows.const_data_ptr();
  l.input_stride = rows.stride(0);
  l.weight = weight.const_data_ptr();
  l.weight_stride = weight.stride(0);
  l.output = gates.mutable_data_ptr<float>() + 4 * d.offset;
  l.output_stride = gates.stride(0);
  l.wide_output = true;
  l.rows = rows.size(0);
  l.depth = rows.size(1);
  l.units = 4 * d.units;
  l.depth_count = depth_count;
  const ProductPlan plan = linear_plan(l, context.multiprocessors());
  const at::Tensor workspace = context.workspace(plan.workspace(), plan.counter_bytes);
  l.workspace = data_or_null(workspace);
  context.expect(linear(l, plan, context.stream()));
}

// Units and batches so large that no blocks can stay with the weights: a library's product in front of each step reads
// them better than a kernel that shares its multiprocessors with the gates. Not measured. It needs counts of the host.
bool library_multiplies(const LstmParams& p, const LstmPlan& plan) {
  constexpr int64_t kLeastUnits = 256, kLeastBatch = 64;
  bool all = !plan.persistent && p.batch >= kLeastBatch;
  for (int64_t i = 0; i < p.directions; ++i) {
    all = all && p.direction[i].units >= kLeastUnits && p.direction[i].unit_count == nullptr;
  }
  return all;
}

// All steps, with the library's products; hidden: the initial states or undefined.
void run_with_library(const Context& context, LstmParams& p, int64_t depth, at::TensorList weight,
                      const at::Tensor& hidden) {
  const LstmPlan plan = lstm_step_plan(p);
  const at::Tensor workspace = context.workspace(plan.workspace(), plan.counter_bytes);
  p.workspace = data_or_null(workspace);
  at::Tensor product[kMostDirections];
  for (int64_t step = 0; step < std::max<int64_t>(1, p.steps); ++step) {
    for (int64_t i = 0; i < p.directions && (step > 0 || hidden.defined()); ++i) {
      LstmDirection& d = p.direction[i];
      const at::Tensor states = step == 0 ? hidden.narrow(1, d.offset, d.units)
                                          : at::from_blob(lstm_state(p, plan, step, i), {p.batch, d.units},
                                                          {plan.state_stride, 1}, weight[i].options());
      const int64_t columns = padded_depth(depth, p.number);  // of the input
      const at::Tensor recurrent = weight[i].slice(1, columns, columns + d.units).t();
      const bool wide = weight[i].scalar_type() == at::kFloat;
      product[i] = wide ? at::mm(states, recurrent) : at::mm(states, recurrent, at::kFloat);
      d.product = product[i].const_data_ptr<float>();
    }
    context.expect(lstm_step(p, plan, step, context.stream()));
  }
  context.expect(lstm_end(p, plan, context.stream()));
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_op(
    const at::Tensor& input, at::TensorList weight, at::TensorList bias, const std::optional<at::Tensor>& lengths,
    const std::optional<at::Tensor>& hidden, const std::optional<at::Tensor>& cell, bool batch_first,
    const std::optional<at::Tensor>& first, std::optional<at::Tensor> usage,
    const std::optional<at::Tensor>& unit_counts, const std::optional<at::Tensor>& depth_count) {
  DYNPRUNE_EXPECT(input.dim() == 3, kOp, "an input [steps, batch, features], or [batch, steps, features] batch first",
                  input.sizes());
  DYNPRUNE_EXPECT((weight.size() == 1 || weight.size() == 2) && bias.size() == weight.size(), kOp,
                  "a weight and a bias for each of one or two directions", weight.size(), " and ", bias.size());
  for (const at::Tensor& own : weight) expect_operands(kOp, input, own, std::nullopt, at::kCUDA);
  const Context context(kOp, input);
  const at::Tensor x = input.contiguous();
  LstmParams p{};
  const int64_t time = batch_first ? 1 : 0, row = 1 - time, depth = x.size(2);
  p.number = number_of(input.scalar_type(), at::globalContext().allowTF32CuDNN(at::Float32Op::RNN));
  p.steps = x.size(time);
  p.batch = x.size(row);
  p.directions = static_cast<int64_t>(weight.size());
  for (int64_t i = 0; i < p.directions; ++i) {
    fill_direction(p, i, depth, weight[i], bias[i]);
    if (unit_counts.has_value())
      p.direction[i].unit_count = expect_count(kOp, "unit_counts", unit_counts, p.directions) + i;
  }
  at::Tensor lengths_there;
  if (lengths.has_value()) {
    DYNPRUNE_EXPECT(lengths->size(0) == p.batch, kOp, c10::str("lengths [", p.batch, "]"), lengths->sizes());
    // Those on the device are not looked at, which would wait: beyond `steps` they are the caller's fault.
    lengths_there = lengths->is_cpu() ? lengths->to(input.device(), /*non_blocking=*/true) : *lengths;
    p.lengths = expect_index_list(kOp, "lengths", lengths_there);
  }
  const at::Tensor hidden_tight = state(p, "hidden", hidden, x.scalar_type());
  const at::Tensor cell_tight = state(p, "cell", cell, x.scalar_type());
  p.hidden = hidden_tight.defined() ? hidden_tight.const_data_ptr() : nullptr;
  p.cell = cell_tight.defined() ? cell_tight.const_data_ptr() : nullptr;
  at::Tensor first_tight;
  if (first.has_value()) {
    expect_float(kOp, "first", *first, at::kCUDA);
    DYNPRUNE_EXPECT(first->dim() == 2 && first->size(0) == p.batch && first->size(1) == 4 * p.total, kOp,
                    c10::str("first [", p.batch, ", ", 4 * p.total, "]"), first->sizes());
    first_tight = first->contiguous();
    for (int64_t i = 0; i < p.directions; ++i) {
      p.direction[i].first = first_tight.const_data_ptr<float>() + 4 * p.direction[i].offset;
      p.direction[i].first_stride = 4 * p.total;
    }
  }
  if (usage.has_value()) {
    expect_usage(kOp, *usage, p.total, at::kCUDA);
    p.usage = usage->mutable_data_ptr<double>();
    p.usage_stride = usage->stride(0);
  }
  const at::Tensor rows = x.view({p.steps * p.batch, depth});
  const at::Tensor gates = at::empty({rows.size(0), 4 * p.total}, x.options().dtype(at::kFloat));
  p.gates_stride_t = (batch_first ? 1 : p.batch) * gates.stride(0);
  p.gates_stride_b = (batch_first ? p.steps : 1) * gates.stride(0);
  for (int64_t i = 0; i < p.directions; ++i) {
    LstmDirection& d = p.direction[i];
    add_inputs(context, p, d, rows, weight[i], gates, expect_count(kOp, "depth_count", depth_count));
    d.gates = gates.const_data_ptr<float>() + 4 * d.offset;
  }
  const at::Tensor output = at::empty({x.size(0), x.size(1), p.total}, input.options());
  const at::Tensor last_hidden = at::empty({p.batch, p.total}, input.options());
  const at::Tensor last_cell = at::empty_like(last_hidden);
  p.output = output.mutable_data_ptr();
  p.output_stride_t = output.stride(time);
  p.output_stride_b = output.stride(row);
  p.last_hidden = last_hidden.mutable_data_ptr();
  p.last_cell = last_cell.mutable_data_ptr();
  const LstmPlan plan = lstm_plan(p, context.multiprocessors(), context.shared_limit());
  if (library_multiplies(p, plan)) {
    run_with_library(context, p, depth, weight, hidden_tight);
    return {output, last_hidden, last_cell};
  }
  const at::Tensor workspace = context.workspace(plan.workspace(), plan.counter_bytes);
  p.workspace = data_or_null(workspace);
  context.expect(lstm(p, plan, context.stream()));
  return {output, last_hidden, last_cell};
}

TORCH_LIBRARY_IMPL(dynprune, CUDA, m) { m.impl("lstm", TORCH_FN(lstm_op)); }

}  // namespace dynprune::cuda
