// dynprune::lstm on the CPU. The schema stands in dynprune/ops/schemas.py.
#include "cpu/lstm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <numeric>

#include "output.h"
#include "run.h"

namespace dynprune {

namespace {

constexpr const char* kOp = "lstm";

// Units of each direction, from the shapes of what belongs to it.
void fill_direction(LstmParams& p, int64_t index, const at::Tensor& weight, const at::Tensor& bias) {
  expect_float(kOp, "weight", weight);
  expect_float(kOp, "bias", bias);
  DYNPRUNE_EXPECT(bias.dim() == 3 && bias.size(0) == 2 && bias.size(1) == 4 && bias.is_contiguous(), kOp,
                  "a contiguous bias [2, 4, units]", bias.sizes());
  LstmDirection& d = p.direction[index];
  d.units = bias.size(2);
  const std::vector<int64_t> wanted{lstm_panels(d.units), p.depth + d.units, kPanel};
  DYNPRUNE_EXPECT(weight.sizes() == at::IntArrayRef(wanted) && weight.is_contiguous(), kOp,
                  c10::str("a contiguous packed weight ", at::IntArrayRef(wanted)), weight.sizes());
  d.weight = weight.const_data_ptr<float>();
  d.bias_first = bias.const_data_ptr<float>();
  d.bias = d.bias_first + 4 * d.units;
  d.offset = p.total;
  d.reverse = index == 1;
  p.total += d.units;
}

at::Tensor state(const LstmParams& p, const char* name, const std::optional<at::Tensor>& given) {
  if (!given.has_value()) return {};
  expect_float(kOp, name, *given);
  DYNPRUNE_EXPECT(given->dim() == 2 && given->size(0) == p.batch && given->size(1) == p.total, kOp,
                  c10::str("a ", name, " state [", p.batch, ", ", p.total, "]"), given->sizes());
  return given->contiguous();
}

// Rows with the longest sequences first; rows of equal length keep their order.
std::vector<int64_t> by_length(const LstmParams& p) {
  std::vector<int64_t> order(p.batch);
  std::iota(order.begin(), order.end(), 0);
  if (p.lengths != nullptr) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p.lengths[a] > p.lengths[b]; });
  }
  return order;
}

// As many slices of the batch as threads ask for, each as large as fits a step's products into a part of L2.
int64_t slices_of(const LstmParams& p) {
  constexpr int64_t kMostRows = 64;
  const int64_t threads = most_threads();
  const int64_t wanted = (threads + p.directions - 1) / p.directions;
  return std::clamp<int64_t>(std::max(wanted, (p.batch + kMostRows - 1) / kMostRows), 1, std::max<int64_t>(1, p.batch));
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm(
    const at::Tensor& input, at::TensorList weight, at::TensorList bias, const std::optional<at::Tensor>& lengths,
    const std::optional<at::Tensor>& hidden, const std::optional<at::Tensor>& cell, bool batch_first,
    const std::optional<at::Tensor>& first, std::optional<at::Tensor> usage,
    const std::optional<at::Tensor>& unit_counts, const std::optional<at::Tensor>& depth_count) {
  expect_no_counts(kOp, unit_counts, depth_count);
  expect_float(kOp, "input", input);
  DYNPRUNE_EXPECT(input.dim() == 3, kOp, "an input [steps, batch, features], or [batch, steps, features] batch first",
                  input.sizes());
  DYNPRUNE_EXPECT((weight.size() == 1 || weight.size() == 2) && bias.size() == weight.size(), kOp,
                  "a weight and a bias for each of one or two directions", weight.size(), " and ", bias.size());
  const at::Tensor x = input.stride(2) == 1 || input.size(2) == 1 ? input : input.contiguous();
  LstmParams p{};
  const int64_t time = batch_first ? 1 : 0, row = 1 - time;
  p.input = x.const_data_ptr<float>();
  p.steps = x.size(time);
  p.batch = x.size(row);
  p.stride_t = x.stride(time);
  p.stride_b = x.stride(row);
  p.depth = x.size(2);
  p.directions = static_cast<int64_t>(weight.size());
  for (int64_t i = 0; i < p.directions; ++i) fill_direction(p, i, weight[i], bias[i]);
  if (lengths.has_value()) {
    DYNPRUNE_EXPECT(lengths->dim() == 1 && lengths->size(0) == p.batch && lengths->scalar_type() == at::kLong &&
                        lengths->is_contiguous() && lengths->device().is_cpu(),
                    kOp, c10::str("contiguous int64 lengths [", p.batch, "] on the CPU"), lengths->scalar_type(), " ",
                    lengths->sizes());
    p.lengths = lengths->const_data_ptr<int64_t>();
    for (int64_t i = 0; i < p.batch; ++i) {
      DYNPRUNE_EXPECT(p.lengths[i] >= 0 && p.lengths[i] <= p.steps, kOp, c10::str("lengths from 0 to ", p.steps),
                      p.lengths[i]);
    }
  }
  const at::Tensor hidden_tight = state(p, "hidden", hidden), cell_tight = state(p, "cell", cell);
  if (hidden_tight.defined()) p.hidden = hidden_tight.const_data_ptr<float>();
  if (cell_tight.defined()) p.cell = cell_tight.const_data_ptr<float>();
  at::Tensor first_tight;
  if (first.has_value()) {
    expect_float(kOp, "first", *first);
    DYNPRUNE_EXPECT(first->dim() == 2 && first->size(0) == p.batch && first->size(1) == 4 * p.total, kOp,
                    c10::str("first [", p.batch, ", ", 4 * p.total, "]"), first->sizes());
    first_tight = first->contiguous();
    for (int64_t i = 0; i < p.directions; ++i) {
      p.direction[i].first = first_tight.const_data_ptr<float>() + 4 * p.direction[i].offset;
      p.direction[i].first_stride = 4 * p.total;
    }
  }
  if (usage.has_value()) expect_usage(kOp, *usage, p.total);

  at::Tensor output = empty_output({x.size(0), x.size(1), p.total}, input.options());
  at::Tensor last_hidden = at::empty({p.batch, p.total}, input.options()), last_cell = at::empty_like(last_hidden);
  p.output = output.mutable_data_ptr<float>();
  p.output_stride_t = output.stride(time);
  p.output_stride_b = output.stride(row);
  p.last_hidden = last_hidden.mutable_data_ptr<float>();
  p.last_cell = last_cell.mutable_data_ptr<float>();
  const std::vector<int64_t> order = by_length(p);
  p.order = order.data();
  p.slices = slices_of(p);
  const int64_t work = p.steps * p.batch * 4 * p.total * (p.depth + p.total / p.directions);
  if (p.batch > 0) {
    run_tasks(lstm_tasks(p), work, p.total, usage,
              [&](double* sums, int64_t begin, int64_t end) { kernels().lstm(p, sums, begin, end); });
  }
  return {output, last_hidden, last_cell};
}

TORCH_LIBRARY_IMPL(dynprune, CPU, m) { m.impl("lstm", TORCH_FN(lstm)); }

}  // namespace dynprune
