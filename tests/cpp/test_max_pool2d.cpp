#include "check.h"

namespace {

void test_pool(const dynprune::Kernels& kernels, int64_t channels, dynprune::PoolAxis h, dynprune::PoolAxis w) {
  constexpr int64_t kBatch = 2;
  Guarded<float> input(kBatch * h.in * w.in * channels), output(kBatch * h.out * w.out * channels);
  for (int64_t i = 0; i < kBatch * h.in * w.in * channels; ++i)
    input.data()[i] = static_cast<float>(i * 7919 % 1009) - 500;
  dynprune::MaxPool2dParams p{};
  p.input = input.data();
  p.stride_n = h.in * w.in * channels;
  p.stride_h = w.in * channels;
  p.stride_w = channels;
  p.output = output.data();
  p.batch = kBatch;
  p.channels = channels;
  p.h = h;
  p.w = w;
  kernels.max_pool2d(p, 0, 1);
  kernels.max_pool2d(p, 1, dynprune::max_pool2d_tasks(p));
  bool right = true;
  for (int64_t i = 0; i < kBatch * h.out * w.out * channels; ++i) {
    const int64_t c = i % channels, ow = i / channels % w.out, oh = i / channels / w.out % h.out;
    const int64_t n = i / channels / w.out / h.out;
    float best = -INFINITY;
    for (int64_t kh = 0; kh < h.kernel; ++kh) {
      for (int64_t kw = 0; kw < w.kernel; ++kw) {
        const int64_t ih = oh * h.stride - h.padding + kh * h.dilation,
                      iw = ow * w.stride - w.padding + kw * w.dilation;
        if (ih < 0 || ih >= h.in || iw < 0 || iw >= w.in) continue;
        best = std::max(best, input.data()[((n * h.in + ih) * w.in + iw) * channels + c]);
      }
    }
    right = right && output.data()[i] == best;
  }
  const std::string what = std::string(kernels.isa) + " max_pool2d " + std::to_string(channels);
  expect(right, what + ": values");
  expect(output.intact(), what + ": guard zones of the output");
}

}  // namespace

void test_max_pool2d(const dynprune::Kernels& kernels) {
  for (int64_t channels : {1, 16, 21, 33}) {
    test_pool(kernels, channels, {7, 3, 2, 2, 0, 1}, {6, 3, 2, 2, 0, 1});
    test_pool(kernels, channels, {5, 3, 3, 2, 1, 1}, {9, 5, 3, 1, 0, 2});
  }
}
