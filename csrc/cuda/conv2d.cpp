// dynprune::conv2d on a GPU. The schema stands in dynprune/ops/schemas.py.
#include "cuda/conv2d.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "conv_axis.h"
#include "cuda/context.h"
#include "cuda/depthwise.h"
#include "cuda/pack.h"
#include "run.h"

namespace dynprune::cuda {

namespace {

struct ConvOperands {
  at::Tensor weight;               // [groups, units of a group, taps, channels], channels contiguous
  std::optional<at::Tensor> bias;  // [units] or the table [low_h, high_h, low_w, high_w, units]
  const int64_t* indices;          // rows of both; nullptr: all
  int64_t kernel_h, kernel_w, units, groups, channels;  // channels of a group
};

ConvOperands packed(const char* op, const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t groups,
                    const std::optional<at::Tensor>& indices) {
  DYNPRUNE_EXPECT(!indices.has_value(), op, "no indices beside a packed weight", indices->sizes());
  // One channel for each unit is packed as one group.
  const bool depthwise = groups != 1 && weight.size(0) == 1 && weight.size(3) == 1;
  const int64_t copies = weight.size(0);
  DYNPRUNE_EXPECT(groups >= (depthwise ? 0 : 1) && (depthwise || copies == groups), op,
                  c10::str("a packed weight [groups, kh, kw, in, padded out] of ", groups, " groups"), weight.sizes());
  DYNPRUNE_EXPECT(bias.has_value() && (bias->dim() == 1 || bias->dim() == 5) && bias->size(-1) % copies == 0 &&
                      padded_units(bias->size(-1) / copies) == weight.size(4) &&
                      (bias->size(-1) == 0 || bias->numel() > 0),
                  op,
                  c10::str("a bias [n] or [low, high, low, high, n] with n", copies == 1 ? "" : " / groups",
                           " rounded up to ", weight.size(4), " beside a packed weight"),
                  bias.has_value() ? c10::str(bias->sizes()) : "none");
  const int64_t units = bias->size(-1);
  DYNPRUNE_EXPECT(!depthwise || units == groups, op, c10::str("as many groups as units, ", units), groups);
  const at::Tensor by_unit = weight.permute({0, 4, 1, 2, 3}).narrow(1, 0, units / copies);
  const bool adjacent = weight.stride(3) == 1 || weight.size(3) < 2;
  const at::Tensor unit_major = (adjacent ? by_unit : by_unit.contiguous()).flatten(2, 3);
  return {unit_major, bias, nullptr, weight.size(1), weight.size(2), units, depthwise ? units : groups, weight.size(3)};
}

ConvOperands master(const char* op, const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t groups,
                    const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices) {
  const int64_t all = weight.size(0);
  DYNPRUNE_EXPECT(groups > 0 && all % groups == 0, op, c10::str("positive groups that divide ", all, " units"), groups);
  DYNPRUNE_EXPECT(groups == 1 || !input_indices.has_value(), op, "no input_indices with groups", groups);
  if (bias.has_value()) {
    const bool table = bias->dim() == 5 && groups == 1 && !indices.has_value();
    DYNPRUNE_EXPECT((bias->dim() == 1 || table) && bias->size(-1) == all && (all == 0 || bias->numel() > 0), op,
                    c10::str("a bias [", all, "], or [low, high, low, high, ", all, "] without indices and groups"),
                    bias->sizes());
  }
  const bool whole_groups = groups == 1 || !indices.has_value();
  if (whole_groups && !input_indices.has_value() && (weight.stride(1) == 1 || weight.size(1) < 2)) {
    // Channels last, as plans on a GPU hold compact weights: read where it lies.
    const bool even = weight.stride(2) == weight.size(3) * weight.stride(3);
    const at::Tensor taps = weight.permute({0, 2, 3, 1});
    const int64_t copies = weight.size(1) == 1 ? 1 : groups;
    const at::Tensor unit_major = (even ? taps : taps.contiguous()).flatten(1, 2).unflatten(0, {copies, all / copies});
    const int64_t* rows = indices.has_value() ? expect_index_list(op, "indices", *indices) : nullptr;
    const int64_t units = indices.has_value() ? indices->numel() : all;
    return {unit_major, bias, rows, weight.size(2), weight.size(3), units, groups, weight.size(1)};
  }
  if (groups > 1 && weight.size(1) == 1) {
    const at::Tensor compact = pack_conv2d(weight, indices, std::nullopt, std::nullopt, groups);
    const int64_t units = indices.has_value() ? indices->numel() : all;
    const at::Tensor unit_major = compact.permute({0, 4, 1, 2, 3}).narrow(1, 0, units).flatten(2, 3);
    const bool picks = bias.has_value() && indices.has_value();
    return {unit_major,     picks ? bias->index_select(0, *indices) : bias,
            nullptr,        weight.size(2),
            weight.size(3), units,
            groups,         1};
  }
  const at::Tensor compact = pack_conv2d(weight, std::nullopt, input_indices, std::nullopt, groups);
  const int64_t copies = compact.size(0);
  const at::Tensor unit_major = compact.permute({0, 4, 1, 2, 3}).narrow(1, 0, all / copies).flatten(2, 3);
  const int64_t* rows = indices.has_value() ? expect_index_list(op, "indices", *indices) : nullptr;
  return {unit_major,     bias,           rows,
          weight.size(2), weight.size(3), indices.has_value() ? indices->numel() : all,
          groups,         compact.size(3)};
}

// index_select would leave an image with its channels apart.
at::Tensor pick_channels(const at::Tensor& image, const at::Tensor& channels) {
  return image.permute({0, 2, 3, 1}).index_select(3, channels).permute({0, 3, 1, 2});
}

void set_input(Conv2dParams& p, const at::Tensor& input) {
  p.stride_n = input.stride(0);
  p.stride_c = 1;
  p.stride_h = input.stride(2);
  p.stride_w = input.stride(3);
}

// Which channel each unit of a depthwise convolution reads; undefined: the one of its own number.
at::Tensor unit_channels(const at::Tensor& input, const at::Tensor& weight, int64_t units,
                         const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices) {
  if (weight.dim() == 5) return input.size(1) == units ? at::Tensor() : input_indices.value_or(at::Tensor());
  const int64_t per_channel = weight.size(0) / input.size(1);
  if (per_channel == 1) return indices.value_or(at::Tensor());
  const at::Tensor all = at::arange(weight.size(0), input.options().dtype(at::kLong)).div(per_channel, "trunc");
  return indices.has_value() ? all.index_select(0, *indices) : all;
}

void run_depthwise(const Context& context, const Conv2dParams& shape, const ConvOperands& o, const at::Tensor& input,
                   const at::Tensor& channels, const at::Tensor& bias, const at::Tensor& output,
                   const std::optional<at::Tensor>& usage) {
  DepthwiseParams p{};
  static_cast<Conv2dParams&>(p) = shape;
  set_input(p, input);
  p.input = input.const_data_ptr();
  p.weight = o.weight.const_data_ptr();
  p.unit_stride = o.weight.stride(1);
  p.tap_stride = o.weight.stride(2);
  p.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  p.output = output.mutable_data_ptr();
  p.units = o.units;
  p.unit_channels = channels.defined() ? expect_index_list("conv2d", "indices", channels) : nullptr;
  p.usage = usage.has_value() ? usage->mutable_data_ptr<double>() : nullptr;
  p.usage_stride = usage.has_value() ? usage->stride(0) : 0;
  const ProductPlan plan = depthwise_plan(p);
  const at::Tensor workspace = context.workspace(plan.workspace(), plan.counter_bytes);
  p.workspace = data_or_null(workspace);
  context.expect(depthwise(p, plan, context.stream()));
}

// One launch for each group.
void run_groups(const Context& context, Conv2dParams p, const ConvOperands& o, const at::Tensor& input,
                const at::Tensor& bias, const at::Tensor& output, const std::optional<at::Tensor>& usage) {
  set_input(p, input);
  const int64_t copies = o.weight.size(0), bytes = input.element_size();
  p.units = o.units / copies;
  p.channels = o.channels;
  p.unit_stride = o.weight.stride(1);
  p.tap_stride = o.weight.stride(2);
  p.indices = o.indices;
  p.usage_stride = usage.has_value() ? usage->stride(0) : 0;
  for (int64_t g = 0; g < copies; ++g) {
    p.input = static_cast<const char*>(input.const_data_ptr()) + g * p.channels * bytes;
    p.weight = o.weight.select(0, g).const_data_ptr();
    p.bias = bias.defined() ? bias.const_data_ptr<float>() + g * p.units : nullptr;
    p.output = static_cast<char*>(output.mutable_data_ptr()) + g * p.units * bytes;
    p.usage = usage.has_value() ? usage->mutable_data_ptr<double>() + g * p.units : nullptr;
    const ProductPlan plan = conv2d_plan(p, context.multiprocessors());
    const at::Tensor workspace = context.workspace(plan.workspace(), plan.counter_bytes);
    p.workspace = data_or_null(workspace);
    context.expect(conv2d(p, plan, context.stream()));
  }
}

// As in linear.cpp: convolutions so large that cuDNN's use of the newest tensor cores should outweigh what our epilogue
// saves, where no sums, counts or border tables are wanted. Not measured.
bool library_serves(const Conv2dParams& p, const ConvOperands& o, const at::Tensor& weight, bool usage) {
  constexpr int64_t kLarge = int64_t{1} << 31;  // multiply-adds
  const bool simple = p.activation.kind == Activation::none || p.activation.kind == Activation::relu;
  const bool plain = !o.bias.has_value() || o.bias->dim() == 1;
  const bool counted = p.unit_count != nullptr || p.channel_count != nullptr;
  const int64_t macs = p.batch * p.h.out * p.w.out * o.units * o.kernel_h * o.kernel_w * o.channels;
  return simple && plain && !counted && !usage && o.groups == 1 && o.indices == nullptr && weight.dim() == 4 &&
         weight.size(1) == o.channels && macs >= kLarge;
}

at::Tensor conv2d_op(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                     const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices,
                     c10::string_view activation, double slope, std::optional<at::Tensor> usage,
                     const std::optional<at::Tensor>& unit_count, const std::optional<at::Tensor>& depth_count) {
  constexpr const char* kOp = "conv2d";
  expect_operands(kOp, input, weight, bias, at::kCUDA);
  DYNPRUNE_EXPECT(input.dim() == 4, kOp, "an input [batch, channels, height, width]", input.sizes());
  DYNPRUNE_EXPECT(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, kOp,
                  "stride, padding and dilation of two numbers", stride, " ", padding, " ", dilation);
  DYNPRUNE_EXPECT(weight.dim() == 4 || weight.dim() == 5, kOp,
                  "a weight [out, in, kh, kw] or packed [groups, kh, kw, in, padded out]", weight.sizes());
  if (weight.dim() == 4 && indices.has_value() && groups > 1 && weight.size(1) > 1) {
    // Which group a picked unit belongs to only the device knows: all are computed, then picked.
    std::optional<at::Tensor> sums;
    if (usage.has_value()) sums = at::zeros({kUsageRows, weight.size(0)}, usage->options());
    const at::Tensor all = conv2d_op(input, weight, bias, stride, padding, dilation, groups, std::nullopt,
                                     input_indices, activation, slope, sums, unit_count, depth_count);
    if (usage.has_value()) usage->add_(sums->index_select(1, *indices));
    return pick_channels(all, *indices);
  }
  const Context context(kOp, input);
  const ConvOperands o = weight.dim() == 5 ? packed(kOp, weight, bias, groups, indices)
                                           : master(kOp, weight, bias, groups, indices, input_indices);
  const bool depthwise = o.groups != 1 && o.channels == 1 && o.weight.size(0) == 1;
  if (usage.has_value()) expect_usage(kOp, *usage, o.units, at::kCUDA);
  const int64_t wanted = o.channels * o.groups;
  const bool compact = input_indices.has_value() && input.size(1) != wanted;
  DYNPRUNE_EXPECT((compact ? input_indices->numel() : input.size(1)) == wanted, kOp,
                  c10::str("an input with ", wanted, " (active) channels"), input.size(1));
  const at::Tensor chosen = compact && !depthwise ? pick_channels(input, *input_indices) : input;
  const bool adjacent = chosen.stride(1) == 1 || chosen.size(1) == 1;
  const at::Tensor x = adjacent ? chosen : chosen.contiguous(at::MemoryFormat::ChannelsLast);

  Conv2dParams p{};
  p.number = number_of(input.scalar_type(), at::globalContext().allowTF32CuDNN(at::Float32Op::CONV));
  p.activation = parse_activation(kOp, activation, slope);
  p.h = conv_axis(kOp, "high", input.size(2), o.kernel_h, stride[0], padding[0], dilation[0]);
  p.w = conv_axis(kOp, "wide", input.size(3), o.kernel_w, stride[1], padding[1], dilation[1]);
  const at::Tensor bias_tight = o.bias.has_value() ? o.bias->contiguous() : at::Tensor();
  if (bias_tight.defined() && bias_tight.dim() == 5) {
    p.h.zones_low = bias_tight.size(0);
    p.h.zones_high = bias_tight.size(1);
    p.w.zones_low = bias_tight.size(2);
    p.w.zones_high = bias_tight.size(3);
  }
  p.batch = input.size(0);
  p.pixel_units = o.units;
  p.unit_count = expect_count(kOp, "unit_count", unit_count);
  p.channel_count = expect_count(kOp, "depth_count", depth_count);
  DYNPRUNE_EXPECT(o.groups == 1 || (p.unit_count == nullptr && p.channel_count == nullptr), kOp,
                  "no counts with groups", o.groups);
  if (library_serves(p, o, weight, usage.has_value())) {
    std::optional<at::Tensor> cast;
    if (o.bias.has_value()) cast = o.bias->to(input.scalar_type());
    const at::Tensor y =
        at::conv2d(x, weight, cast, stride, padding, dilation).contiguous(at::MemoryFormat::ChannelsLast);
    return p.activation.kind == Activation::relu ? y.relu_() : y;
  }
  const at::Tensor output =
      at::empty({p.batch, o.units, p.h.out, p.w.out}, input.options(), at::MemoryFormat::ChannelsLast);
  if (depthwise) {
    const at::Tensor channels = unit_channels(input, weight, o.units, indices, input_indices);
    run_depthwise(context, p, o, x, channels, bias_tight, output, usage);
  } else {
    run_groups(context, p, o, x, bias_tight, output, usage);
  }
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(dynprune, CUDA, m) { m.impl("conv2d", TORCH_FN(conv2d_op)); }

}  // namespace dynprune::cuda
