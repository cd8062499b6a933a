// dynprune::linear on the CPU. The schema stands in dynprune/ops/schemas.py, where installs without a compiler have it
// too.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <string_view>

#include "bfloat16.h"
#include "output.h"
#include "pack.h"
#include "sparse_input.h"

namespace dynprune {

namespace {

constexpr const char* kOp = "linear";

struct Operands {
  at::Tensor weight;               // packed, or a master whose rows and columns are picked as they are read
  std::optional<at::Tensor> bias;  // [units]
  bool gather;                     // whether input_indices pick columns of the input
  int64_t units;
};

// A packed weight is taken as it is; rows and columns of a master are packed for this one call, unless `as_it_lies`.
Operands resolve(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                 const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices,
                 bool as_it_lies) {
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
  const at::Tensor chosen_weight =
      as_it_lies ? weight.contiguous() : pack_linear(weight, indices, input_indices, std::nullopt);
  std::optional<at::Tensor> chosen = bias;
  if (bias.has_value() && indices.has_value()) chosen = bias->index_select(0, *indices);
  return {chosen_weight, chosen, width != depth, indices.has_value() ? indices->numel() : weight.size(0)};
}

void expect_input_major(const at::Tensor& t, const Operands& operands) {
  expect_float(kOp, "input_major", t);
  const std::vector<int64_t> sizes{operands.weight.size(1), input_major_units(operands.units)};
  DYNPRUNE_EXPECT(t.sizes() == at::IntArrayRef(sizes) && t.is_contiguous(), kOp,
                  c10::str("a contiguous input_major ", at::IntArrayRef(sizes)), t.sizes());
}

// Up to so many rows a master's weights are multiplied where they lie. Without vector instructions of our own, products
// are those of BLAS, which wants them packed.
int64_t most_unpacked() { return kernels().isa == std::string_view("plain") ? 16 : 256; }

void run_master(const LinearParams& p, const at::Tensor& master, const std::optional<at::Tensor>& indices,
                const std::optional<at::Tensor>& input_indices, const std::optional<at::Tensor>& usage) {
  const auto list = [](const std::optional<at::Tensor>& t) {
    return t.has_value() ? t->const_data_ptr<int64_t>() : nullptr;
  };
  const MasterLinearParams m{p, master.const_data_ptr<float>(), master.size(1), list(indices), list(input_indices)};
  run_tasks(
      master_linear_tasks(m), m.rows * m.depth * m.units, m.units, usage,
      [&](double* sums, int64_t begin, int64_t end) { kernels().master_linear(m, sums, begin, end); },
      m.rows <= kRowTile);
}

// Where a row tile reads more weights than L2 holds, several take turns on each panel, as far as their inputs fit.
int64_t group_of(const LinearParams& p) {
  constexpr int64_t kManyWeights = 384 * 1024, kInputs = 256 * 1024;
  if (p.input_indices != nullptr || p.depth * p.units <= kManyWeights) return 1;
  return std::max<int64_t>(1, kInputs / (p.row_tile * p.depth));
}

// Few rows read far more weights than they do arithmetic: where most inputs are zero, as after a ReLU, the others'
// weights are all that is read. With a threshold it is what the result is, not a choice. Returns whether it did the
// work.
bool skip_inputs(const LinearParams& p, float threshold, const float* input_major,
                 const std::optional<at::Tensor>& usage) {
  // Picking is the work of one thread, while the others wait.
  constexpr int64_t kLeastWeights = 256 * 256, kLeastPerThread = 384 * 512;
  if (p.rows == 0 || p.rows > kSparseRows || p.input_indices != nullptr) return false;
  const int64_t threads = most_threads();
  const int64_t least = threads == 1 || input_major != nullptr ? kLeastWeights : threads * kLeastPerThread;
  if (threshold == 0 && p.depth * p.units < least) return false;
  // Above this share of the inputs, reading straight through is as fast, but for weights that come from memory, which
  // this kernel fetches ahead. On AVX-512 the other one does so as well.
  const bool fetched = p.streamed && !on_avx512();
  const bool any = threshold > 0 || input_major != nullptr || fetched;
  const int64_t most = any ? p.depth : static_cast<int64_t>(0.6 * static_cast<double>(p.depth));
  const std::optional<std::vector<int64_t>> picked = pick_inputs(p, threshold, most);
  if (picked.has_value()) run_picked(p, *picked, input_major, usage);
  return picked.has_value();
}

}  // namespace

at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices,
                  c10::string_view activation, double slope, double input_threshold,
                  const std::optional<at::Tensor>& input_major, std::optional<at::Tensor> usage,
                  const std::optional<at::Tensor>& unit_count, const std::optional<at::Tensor>& depth_count) {
  expect_operands(kOp, input, weight, bias);
  expect_no_counts(kOp, unit_count, depth_count);
  DYNPRUNE_EXPECT(input.dim() >= 1, kOp, "an input [..., features]", input.sizes());
  DYNPRUNE_EXPECT(input_threshold >= 0, kOp, "an input_threshold of at least 0", input_threshold);
  const ActivationSpec spec = parse_activation(kOp, activation, slope);
  const int64_t count = c10::multiply_integers(input.sizes().begin(), input.sizes().end() - 1);
  const bool as_it_lies = weight.dim() == 2 && input.scalar_type() == at::kFloat && input_threshold == 0 &&
                          !input_major.has_value() && count <= most_unpacked();
  const Operands operands = resolve(input, weight, bias, indices, input_indices, as_it_lies);
  if (usage.has_value()) expect_usage(kOp, *usage, operands.units);
  if (input_major.has_value()) expect_input_major(*input_major, operands);
  const int64_t* columns =
      operands.gather ? expect_indices(kOp, "input_indices", *input_indices, input.size(-1)) : nullptr;
  // Which inputs are left out is a matter of those that are read.
  const bool gathered = columns != nullptr && input_threshold > 0;
  const at::Tensor read = gathered ? input.index_select(-1, *input_indices) : input;

  auto shape = input.sizes().vec();
  shape.back() = operands.units;
  at::Tensor output = empty_output(shape, input.options());
  const at::Tensor rows = read.dim() == 2 && read.stride(1) == 1 ? read : read.contiguous();
  const at::Tensor bias_tight = operands.bias.has_value() ? operands.bias->contiguous() : at::Tensor();

  if (input.scalar_type() == at::kBFloat16) {
    at::Tensor x = operands.gather && !gathered ? rows.index_select(-1, *input_indices) : rows;
    if (input_threshold > 0 && x.numel() <= kSparseRows * x.size(-1)) {
      const at::Tensor small = x.abs().le(input_threshold).reshape({-1, x.size(-1)}).all(0);
      x = x.masked_fill(small, 0);
    }
    run_bf16(x, operands.weight, bias_tight, output, spec, usage);
    return output;
  }
  LinearParams p{};
  p.input = rows.const_data_ptr<float>();
  p.input_stride = read.dim() == 2 ? rows.stride(0) : read.size(-1);
  p.input_indices = gathered ? nullptr : columns;
  p.bias = bias_tight.defined() ? bias_tight.const_data_ptr<float>() : nullptr;
  p.output = output.mutable_data_ptr<float>();
  p.rows = count;
  p.depth = as_it_lies && input_indices.has_value() ? input_indices->numel() : operands.weight.size(1);
  p.units = operands.units;
  p.activation = spec;
  if (as_it_lies) {
    run_master(p, operands.weight, indices, input_indices, usage);
    return output;
  }
  p.weight = operands.weight.const_data_ptr<float>();
  p.row_tile = row_tile(p.rows, panel_count(p.units));
  p.group = group_of(p);
  constexpr int64_t kCachedWeights = 2 * 1024 * 1024;  // what L2 and a share of L3 hold
  p.streamed = p.depth * p.units > kCachedWeights;
  const float* major = input_major.has_value() ? input_major->const_data_ptr<float>() : nullptr;
  if (skip_inputs(p, static_cast<float>(input_threshold), major, usage)) return output;
  run_tasks(
      linear_tasks(p), p.rows * p.depth * p.units, p.units, usage,
      [&](double* sums, int64_t begin, int64_t end) { kernels().linear(p, sums, begin, end); }, p.rows <= p.row_tile);
  return output;
}

TORCH_LIBRARY_IMPL(dynprune, CPU, m) { m.impl("linear", TORCH_FN(linear)); }

}  // namespace dynprune
