// dynprune::conv2d on the CPU. The schema stands in dynprune/ops/schemas.py.
#include "cpu/conv2d.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "bfloat16.h"
#include "conv_axis.h"
#include "output.h"
#include "pack.h"
#include "run.h"

namespace dynprune {

namespace {

constexpr const char* kOp = "conv2d";

// What runs as one convolution: all of it, or one group of several.
struct Part {
  at::Tensor weight;  // packed
  int64_t channel;    // the first of its group in the input
  int64_t unit, units;
};

struct Operands {
  std::vector<Part> parts;
  std::optional<at::Tensor> bias;  // [units] or the table [low_h, high_h, low_w, high_w, units]
  int64_t kernel_h, kernel_w, units;
  bool depthwise;
  const int64_t* channels = nullptr;       // of the input that are read; nullptr: as they lie
  std::vector<int64_t> own_channels = {};  // where `channels` points if no tensor holds them
};

void expect_packed_bias(const std::optional<at::Tensor>& bias, int64_t padded, int64_t groups) {
  DYNPRUNE_EXPECT(bias.has_value() && (bias->dim() == 1 || bias->dim() == 5) && bias->size(-1) % groups == 0 &&
                      padded_units(bias->size(-1) / groups) == padded && (bias->size(-1) == 0 || bias->numel() > 0),
                  kOp,
                  c10::str("a bias [n] or [low, high, low, high, n] with n", groups == 1 ? "" : " / groups",
                           " rounded up to ", padded, " beside a packed weight"),
                  bias.has_value() ? c10::str(bias->sizes()) : "none");
}

Operands packed_operands(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         int64_t groups, const std::optional<at::Tensor>& indices,
                         const std::optional<at::Tensor>& input_indices) {
  DYNPRUNE_EXPECT(!indices.has_value(), kOp, "no indices beside a packed weight", indices->sizes());
  // One channel for each unit: packed as one group is, whatever the number of units; there may be none.
  const bool depthwise = groups != 1 && weight.size(0) == 1 && weight.size(3) == 1;
  const int64_t copies = depthwise ? 1 : groups;
  DYNPRUNE_EXPECT(groups >= (depthwise ? 0 : 1) && weight.size(0) == copies && weight.is_contiguous(), kOp,
                  c10::str("a packed weight [groups, kh, kw, in, padded out] of ", groups, " groups"), weight.sizes());
  expect_packed_bias(bias, weight.size(4), copies);
  Operands o{{}, bias, weight.size(1), weight.size(2), bias->size(-1), depthwise};
  DYNPRUNE_EXPECT(!depthwise || o.units == groups, kOp, c10::str("as many groups as units, ", o.units), groups);
  DYNPRUNE_EXPECT(copies == 1 || !input_indices.has_value(), kOp, "no input_indices beside several groups",
                  input_indices->sizes());
  const int64_t wanted = depthwise ? groups : weight.size(3) * groups;
  const int64_t given = input_indices.has_value() ? input_indices->numel() : input.size(1);
  DYNPRUNE_EXPECT(given == wanted, kOp, c10::str("an input with ", wanted, " (active) channels"), given);
  if (input.size(1) != wanted) o.channels = expect_indices(kOp, "input_indices", *input_indices, input.size(1));
  for (int64_t g = 0; g < copies; ++g) {
    const int64_t units = o.units / copies;
    o.parts.push_back({weight.select(0, g), g * weight.size(3), g * units, units});
  }
  return o;
}

Operands master_operands(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                         int64_t groups, const std::optional<at::Tensor>& indices,
                         const std::optional<at::Tensor>& input_indices) {
  const int64_t width = input.size(1), all = weight.size(0), depth = weight.size(1);
  DYNPRUNE_EXPECT(groups > 0 && all % groups == 0, kOp, c10::str("positive groups that divide ", all, " units"),
                  groups);
  DYNPRUNE_EXPECT(groups == 1 || !input_indices.has_value(), kOp, "no input_indices with groups", groups);
  const int64_t channels = input_indices.has_value() ? input_indices->numel() : depth * groups;
  DYNPRUNE_EXPECT(width == depth * groups || width == channels, kOp,
                  c10::str("an input with ", depth * groups, " (active) channels"), width);
  if (bias.has_value()) {
    const bool table = bias->dim() == 5 && groups == 1 && !indices.has_value();
    DYNPRUNE_EXPECT((bias->dim() == 1 || table) && bias->size(-1) == all && (all == 0 || bias->numel() > 0), kOp,
                    c10::str("a bias [", all, "], or [low, high, low, high, ", all, "] without indices and groups"),
                    bias->sizes());
  }
  const int64_t* chosen = indices.has_value() ? expect_indices(kOp, "indices", *indices, all) : nullptr;
  if (input_indices.has_value()) expect_indices(kOp, "input_indices", *input_indices, depth);
  std::optional<at::Tensor> chosen_bias = bias;
  if (bias.has_value() && indices.has_value()) chosen_bias = bias->index_select(0, *indices);
  const int64_t units = indices.has_value() ? indices->numel() : all;
  Operands o{{}, chosen_bias, weight.size(2), weight.size(3), units, groups > 1 && depth == 1};
  if (o.depthwise && (indices.has_value() || all != groups)) {
    for (int64_t u = 0; u < o.units; ++u) {
      o.own_channels.push_back((indices.has_value() ? chosen[u] : u) / (all / groups));
    }
    o.channels = o.own_channels.data();
  }
  if (groups == 1 && width != channels) o.channels = input_indices->const_data_ptr<int64_t>();
  if (groups == 1 || o.depthwise) {
    o.parts.push_back({pack_conv2d(weight, indices, input_indices, std::nullopt).select(0, 0), 0, 0, o.units});
    return o;
  }
  const int64_t per_group = all / groups;
  for (int64_t g = 0, unit = 0; g < groups; ++g) {
    std::optional<at::Tensor> rows;
    int64_t next = unit + per_group;
    if (indices.has_value()) {
      next = std::lower_bound(chosen + unit, chosen + units, (g + 1) * per_group) - chosen;
      rows = indices->narrow(0, unit, next - unit) - g * per_group;
    }
    const at::Tensor packed = pack_conv2d(weight.narrow(0, g * per_group, per_group), rows, std::nullopt, std::nullopt);
    o.parts.push_back({packed.select(0, 0), g * depth, unit, next - unit});
    unit = next;
  }
  return o;
}

void set_strides(Convolution& c, const at::Tensor& input) {
  c.stride_n = input.stride(0);
  // A dimension of one channel may have any stride; the kernels ask whether channels are adjacent.
  c.stride_c = input.size(1) == 1 ? 1 : input.stride(1);
  c.stride_h = input.stride(2);
  c.stride_w = input.stride(3);
}

std::optional<at::Tensor> usage_of(const std::optional<at::Tensor>& usage, const Part& part) {
  if (!usage.has_value()) return std::nullopt;
  return usage->narrow(1, part.unit, part.units);
}

void run_parts(const Convolution& shape, const at::Tensor& input, const Operands& operands, const at::Tensor& bias,
               at::Tensor& output, const std::optional<at::Tensor>& usage) {
  Conv2dParams p{shape};
  set_strides(p, input);
  p.input_indices = operands.channels;
  p.depthwise = operands.depthwise;
  for (const Part& part : operands.parts) {
    const bool narrow = part.weight.scalar_type() == at::kBFloat16;
    const at::Tensor weight = narrow ? unpaired(part.weight, p.h.kernel * p.w.kernel) : part.weight;
    p.input = input.const_data_ptr<float>() + part.channel * p.stride_c;
    p.weight = weight.const_data_ptr<float>();
    p.bias = bias.defined() ? bias.const_data_ptr<float>() + part.unit : nullptr;
    p.output = output.mutable_data_ptr<float>() + part.unit;
    p.units = part.units;
    p.channels = p.depthwise ? part.units : part.weight.size(2);
    kernels().conv2d_plan(p, at::get_num_threads());
    const int64_t depth = p.h.kernel * p.w.kernel * (p.depthwise ? 1 : p.channels);
    run_tasks(conv2d_tasks(p), p.batch * p.h.out * p.w.out * p.units * depth, p.units, usage_of(usage, part),
              [&](double* sums, int64_t begin, int64_t end) { kernels().conv2d(p, sums, begin, end); });
  }
}

at::Tensor adjacent_channels(const at::Tensor& input) {
  const bool adjacent = input.stride(1) == 1 || input.size(1) == 1;
  return adjacent ? input : input.contiguous(at::MemoryFormat::ChannelsLast);
}

void run_parts_bf16(const Convolution& shape, const at::Tensor& input, const Operands& operands, const at::Tensor& bias,
                    at::Tensor& output, const std::optional<at::Tensor>& usage) {
  Bf16Params p{shape};
  set_strides(p, input);
  for (const Part& part : operands.parts) {
    p.input = bits(input) + part.channel;
    p.weight = bits(part.weight);
    p.bias = bias.defined() ? bias.const_data_ptr<float>() + part.unit : nullptr;
    p.output = bits(output) + part.unit;
    p.units = part.units;
    p.channels = part.weight.size(2);
    run_bf16(p, usage_of(usage, part));
  }
}

}  // namespace

at::Tensor conv2d(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                  const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices,
                  c10::string_view activation, double slope, std::optional<at::Tensor> usage,
                  const std::optional<at::Tensor>& unit_count, const std::optional<at::Tensor>& depth_count) {
  expect_operands(kOp, input, weight, bias);
  expect_no_counts(kOp, unit_count, depth_count);
  DYNPRUNE_EXPECT(input.dim() == 4, kOp, "an input [batch, channels, height, width]", input.sizes());
  DYNPRUNE_EXPECT(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, kOp,
                  "stride, padding and dilation of two numbers", stride, " ", padding, " ", dilation);
  const ActivationSpec spec = parse_activation(kOp, activation, slope);
  DYNPRUNE_EXPECT(weight.dim() == 4 || weight.dim() == 5, kOp,
                  "a weight [out, in, kh, kw] or packed [groups, kh, kw, in, padded out]", weight.sizes());
  const auto resolve = weight.dim() == 5 ? packed_operands : master_operands;
  const Operands operands = resolve(input, weight, bias, groups, indices, input_indices);
  if (usage.has_value()) expect_usage(kOp, *usage, operands.units);

  Convolution shape{};
  shape.h = conv_axis(kOp, "high", input.size(2), operands.kernel_h, stride[0], padding[0], dilation[0]);
  shape.w = conv_axis(kOp, "wide", input.size(3), operands.kernel_w, stride[1], padding[1], dilation[1]);
  at::Tensor bias_tight;
  if (operands.bias.has_value()) {
    bias_tight = operands.bias->contiguous();
    if (bias_tight.dim() == 5) {
      shape.h.zones_low = bias_tight.size(0);
      shape.h.zones_high = bias_tight.size(1);
      shape.w.zones_low = bias_tight.size(2);
      shape.w.zones_high = bias_tight.size(3);
    }
  }
  shape.batch = input.size(0);
  shape.pixel_units = operands.units;
  shape.activation = spec;
  const bool bf16 = input.scalar_type() == at::kBFloat16;
  at::Tensor output = empty_output({input.size(0), operands.units, shape.h.out, shape.w.out},
                                   input.options().dtype(bf16 && !operands.depthwise ? at::kBFloat16 : at::kFloat),
                                   at::MemoryFormat::ChannelsLast);
  if (bf16 && !operands.depthwise) {
    const at::Tensor chosen = operands.channels == nullptr ? input : input.index_select(1, *input_indices);
    run_parts_bf16(shape, adjacent_channels(chosen), operands, bias_tight, output, usage);
    return output;
  }
  // Depthwise, there is next to nothing to multiply with one value: float32 does as well.
  run_parts(shape, input.to(at::kFloat), operands, bias_tight, output, usage);
  return bf16 ? output.to(at::kBFloat16) : output;
}

TORCH_LIBRARY_IMPL(dynprune, CPU, m) { m.impl("conv2d", TORCH_FN(conv2d)); }

}  // namespace dynprune
