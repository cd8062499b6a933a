// dynprune::max_pool2d on the CPU. The schema stands in dynprune/ops/schemas.py.
#include "cpu/max_pool2d.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "output.h"
#include "run.h"

namespace dynprune {

namespace {

constexpr const char* kOp = "max_pool2d";

PoolAxis axis(const char* name, int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
              bool ceil_mode) {
  DYNPRUNE_EXPECT(kernel > 0 && stride > 0 && dilation > 0 && padding >= 0 && 2 * padding <= kernel, kOp,
                  "positive kernel, stride and dilation and padding of at most half the kernel", kernel, ", ", stride,
                  ", ", dilation, ", ", padding);
  const int64_t reach = (kernel - 1) * dilation + 1, room = in + 2 * padding - reach;
  DYNPRUNE_EXPECT(room >= 0 || (ceil_mode && room + stride > 0), kOp,
                  c10::str("a padded input at least ", reach, " ", name), in + 2 * padding);
  int64_t out = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (out - 1) * stride >= in + padding) --out;  // a window must start inside
  return {in, out, kernel, stride, padding, dilation};
}

}  // namespace

at::Tensor max_pool2d(const at::Tensor& input, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, bool ceil_mode) {
  expect_float(kOp, "input", input);
  DYNPRUNE_EXPECT(input.dim() == 4, kOp, "an input [batch, channels, height, width]", input.sizes());
  DYNPRUNE_EXPECT(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, kOp,
                  "kernel, stride, padding and dilation of two numbers", kernel, " ", stride, " ", padding, " ",
                  dilation);
  MaxPool2dParams p{};
  p.h = axis("high", input.size(2), kernel[0], stride[0], padding[0], dilation[0], ceil_mode);
  p.w = axis("wide", input.size(3), kernel[1], stride[1], padding[1], dilation[1], ceil_mode);
  const bool last = input.size(1) < 2 || input.stride(1) == 1;
  const at::Tensor x = last ? input : input.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor output =
      empty_output({input.size(0), input.size(1), p.h.out, p.w.out}, input.options(), at::MemoryFormat::ChannelsLast);
  p.input = x.const_data_ptr<float>();
  p.stride_n = x.stride(0);
  p.stride_h = x.stride(2);
  p.stride_w = x.stride(3);
  p.output = output.mutable_data_ptr<float>();
  p.batch = input.size(0);
  p.channels = input.size(1);
  const int64_t work = output.numel() * p.h.kernel * p.w.kernel;
  run_tasks(max_pool2d_tasks(p), work, p.channels, std::nullopt,
            [&](double*, int64_t begin, int64_t end) { kernels().max_pool2d(p, begin, end); });
  return output;
}

TORCH_LIBRARY_IMPL(dynprune, CPU, m) { m.impl("max_pool2d", TORCH_FN(max_pool2d)); }

}  // namespace dynprune
