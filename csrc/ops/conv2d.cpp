// dynprune::conv2d on the CPU. The schema stands in dynprune/ops/schemas.py.
#include "cpu/conv2d.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "output.h"
#include "pack.h"
#include "run.h"

namespace dynprune {

namespace {

constexpr const char* kOp = "conv2d";

ConvAxis axis(const char* name, int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  DYNPRUNE_EXPECT(stride > 0 && dilation > 0 && padding >= 0 && kernel > 0, kOp,
                  "positive kernel, stride and dilation and padding of at least 0", kernel, ", ", stride, ", ",
                  dilation, ", ", padding);
  const int64_t reach = (kernel - 1) * dilation + 1;
  DYNPRUNE_EXPECT(in + 2 * padding >= reach, kOp, c10::str("a padded input at least ", reach, " ", name),
                  in + 2 * padding);
  return {in, (in + 2 * padding - reach) / stride + 1, kernel, stride, padding, dilation, 1, 1};
}

// Grouped convolutions run on ATen, with the same epilogue and the same result.
at::Tensor grouped(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                   const std::optional<at::Tensor>& indices, const ActivationSpec& spec,
                   const std::optional<at::Tensor>& usage) {
  const int64_t units = weight.size(0), channels = weight.size(1) * groups;
  DYNPRUNE_EXPECT(groups > 0 && units % groups == 0, kOp, c10::str("positive groups that divide ", units, " units"),
                  groups);
  DYNPRUNE_EXPECT(input.size(1) == channels, kOp, c10::str("an input with ", channels, " channels"), input.size(1));
  if (bias.has_value()) {
    DYNPRUNE_EXPECT(bias->dim() == 1 && bias->size(0) == units, kOp, c10::str("a bias [", units, "]"), bias->sizes());
  }
  axis("high", input.size(2), weight.size(2), stride[0], padding[0], dilation[0]);
  axis("wide", input.size(3), weight.size(3), stride[1], padding[1], dilation[1]);
  if (indices.has_value()) expect_indices(kOp, "indices", *indices, units);
  if (usage.has_value()) expect_usage(kOp, *usage, indices.has_value() ? indices->numel() : units);
  at::Tensor y = at::conv2d(input, weight, bias, stride, padding, dilation, groups);
  if (indices.has_value()) y = y.index_select(1, *indices);
  switch (spec.kind) {
    case Activation::none: break;
    case Activation::relu: y = at::relu(y); break;
    case Activation::leaky_relu: y = at::leaky_relu(y, spec.slope); break;
    case Activation::gelu: y = at::gelu(y); break;
    case Activation::gelu_tanh: y = at::gelu(y, "tanh"); break;
    case Activation::silu: y = at::silu(y); break;
    case Activation::tanh: y = at::tanh(y); break;
    case Activation::sigmoid: y = at::sigmoid(y); break;
  }
  if (usage.has_value()) {
    const at::Tensor a = y.transpose(0, 1).reshape({y.size(1), -1}).to(at::kDouble);
    const at::Tensor good = a.isfinite();
    const at::Tensor v = at::where(good, a, 0.0);
    usage->add_(at::stack({v.abs().sum(1), v.sum(1), v.square().sum(1), good.sum(1).to(at::kDouble)}));
  }
  return y.contiguous(at::MemoryFormat::ChannelsLast);
}

struct Operands {
  at::Tensor weight;               // packed
  std::optional<at::Tensor> bias;  // [units] or the table [low_h, high_h, low_w, high_w, units]
  bool gather;
  int64_t units;
};

Operands resolve(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                 const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices) {
  const int64_t width = input.size(1);
  if (weight.dim() == 5) {
    DYNPRUNE_EXPECT(weight.size(0) == 1 && weight.is_contiguous(), kOp, "a packed weight [1, kh, kw, in, padded out]",
                    weight.sizes());
    DYNPRUNE_EXPECT(!indices.has_value(), kOp, "no indices beside a packed weight", indices->sizes());
    DYNPRUNE_EXPECT(bias.has_value() && (bias->dim() == 1 || bias->dim() == 5) &&
                        padded_units(bias->size(-1)) == weight.size(4) && (bias->size(-1) == 0 || bias->numel() > 0),
                    kOp,
                    c10::str("a bias [n] or [low, high, low, high, n] with n rounded up to ", weight.size(4),
                             " beside a packed weight"),
                    bias.has_value() ? c10::str(bias->sizes()) : "none");
    const int64_t channels = input_indices.has_value() ? input_indices->numel() : width;
    DYNPRUNE_EXPECT(channels == weight.size(3), kOp, c10::str("an input with ", weight.size(3), " (active) channels"),
                    channels);
    return {weight, bias, width != channels, bias->size(-1)};
  }
  DYNPRUNE_EXPECT(weight.dim() == 4, kOp, "a weight [out, in, kh, kw] or packed [1, kh, kw, in, padded out]",
                  weight.sizes());
  const int64_t channels = input_indices.has_value() ? input_indices->numel() : weight.size(1);
  DYNPRUNE_EXPECT(width == weight.size(1) || width == channels, kOp,
                  c10::str("an input with ", weight.size(1), " channels, or the ", channels, " of input_indices"),
                  width);
  if (bias.has_value()) {
    DYNPRUNE_EXPECT(bias->dim() == 1 && bias->size(0) == weight.size(0), kOp, c10::str("a bias [", weight.size(0), "]"),
                    bias->sizes());
  }
  if (indices.has_value()) expect_indices(kOp, "indices", *indices, weight.size(0));
  if (input_indices.has_value()) expect_indices(kOp, "input_indices", *input_indices, weight.size(1));
  at::Tensor packed = pack_conv2d(weight, indices, input_indices, std::nullopt);
  std::optional<at::Tensor> chosen = bias;
  if (bias.has_value() && indices.has_value()) chosen = bias->index_select(0, *indices);
  return {packed, chosen, width != channels, indices.has_value() ? indices->numel() : weight.size(0)};
}

}  // namespace

at::Tensor conv2d(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                  const std::optional<at::Tensor>& indices, const std::optional<at::Tensor>& input_indices,
                  c10::string_view activation, double slope, std::optional<at::Tensor> usage) {
  expect_float(kOp, "input", input);
  expect_float(kOp, "weight", weight);
  if (bias.has_value()) expect_float(kOp, "bias", *bias);
  DYNPRUNE_EXPECT(input.dim() == 4, kOp, "an input [batch, channels, height, width]", input.sizes());
  DYNPRUNE_EXPECT(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, kOp,
                  "stride, padding and dilation of two numbers", stride, " ", padding, " ", dilation);
  const ActivationSpec spec = parse_activation(kOp, activation, slope);
  if (groups != 1) {
    DYNPRUNE_EXPECT(weight.dim() == 4 && !input_indices.has_value(), kOp,
                    "a master weight [out, in, kh, kw] and no input_indices with groups", weight.sizes());
    return grouped(input, weight, bias, stride, padding, dilation, groups, indices, spec, usage);
  }
  const Operands operands = resolve(input, weight, bias, indices, input_indices);
  if (usage.has_value()) expect_usage(kOp, *usage, operands.units);

  Conv2dParams p{};
  p.h = axis("high", input.size(2), operands.weight.size(1), stride[0], padding[0], dilation[0]);
  p.w = axis("wide", input.size(3), operands.weight.size(2), stride[1], padding[1], dilation[1]);
  at::Tensor bias_tight;
  if (operands.bias.has_value()) {
    bias_tight = operands.bias->contiguous();
    if (bias_tight.dim() == 5) {
      p.h.zones_low = bias_tight.size(0);
      p.h.zones_high = bias_tight.size(1);
      p.w.zones_low = bias_tight.size(2);
      p.w.zones_high = bias_tight.size(3);
    }
    p.bias = bias_tight.const_data_ptr<float>();
  }
  at::Tensor output =
      empty_output({input.size(0), operands.units, p.h.out, p.w.out}, input.options(), at::MemoryFormat::ChannelsLast);
  p.input = input.const_data_ptr<float>();
  p.stride_n = input.stride(0);
  p.stride_c = input.stride(1);
  p.stride_h = input.stride(2);
  p.stride_w = input.stride(3);
  // A dimension of one channel may have any stride; the kernel asks whether channels are adjacent.
  if (input.size(1) == 1) p.stride_c = 1;
  if (operands.gather) p.input_indices = expect_indices(kOp, "input_indices", *input_indices, input.size(1));
  p.weight = operands.weight.const_data_ptr<float>();
  p.output = output.mutable_data_ptr<float>();
  p.batch = input.size(0);
  p.channels = operands.weight.size(3);
  p.units = operands.units;
  p.activation = spec;
  kernels().conv2d_plan(p, at::get_num_threads());
  const int64_t work = p.batch * p.h.out * p.w.out * p.units * p.channels * p.h.kernel * p.w.kernel;
  run_tasks(conv2d_tasks(p), work, p.units, usage,
            [&](double* sums, int64_t begin, int64_t end) { kernels().conv2d(p, sums, begin, end); });
  return output;
}

TORCH_LIBRARY_IMPL(dynprune, CPU, m) { m.impl("conv2d", TORCH_FN(conv2d)); }

}  // namespace dynprune
