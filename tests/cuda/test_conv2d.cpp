#include <memory>

#include "check.h"
#include "cuda/conv2d.h"

namespace {

using namespace check;
using namespace dynprune;
using namespace dynprune::cuda;

struct Axis {
  int64_t in, kernel, stride = 1, padding = 0, dilation = 1, low = 1, high = 1;
};

struct Case {
  const char* name;
  Number number;
  int64_t batch, channels, units;
  Axis h, w;
  int64_t pixel_stride = 0;  // 0: channels rounded up to whole chunks
  int64_t tap_stride = 0;
  Activation activation = Activation::none;
  int64_t picked = -1, more_units = 0;
  int channel_count = -1, unit_count = -1, multiprocessors = 1;
};

const Axis kThree5{5, 3, 1, 1}, kThree6{6, 3, 1, 1};

const Case kCases[] = {
    {"one of each", Number::f32, 1, 1, 1, {1, 1}, {1, 1}},
    {"no channels", Number::f32, 2, 0, 4, kThree5, kThree5},
    {"1x1", Number::bf16, 2, 17, 15, {5, 1}, {7, 1}, 0, 0, Activation::relu},
    {"3x3", Number::bf16, 2, 24, 40, kThree5, kThree6, 0, 0, Activation::relu},
    {"3x3, packed tight, unaligned", Number::bf16, 1, 17, 20, kThree5, kThree6, 17, 17},
    {"3x3, three channels", Number::f16, 2, 3, 16, kThree5, kThree6, 3, 8, Activation::gelu},
    {"3x3, zones", Number::bf16, 2, 16, 33, {5, 3, 1, 1, 1, 2, 2}, {6, 3, 1, 1, 1, 2, 2}, 0, 0, Activation::relu},
    {"3x3, zones, two row tiles", Number::f32, 3, 4, 20, {5, 3, 1, 1, 1, 2, 2}, {6, 3, 1, 1, 1, 2, 2}},
    {"5x5, image smaller", Number::f32, 2, 2, 17, {2, 5, 1, 2, 1, 3, 4}, {3, 5, 1, 2, 1, 3, 2}},
    {"stride 2, dilation 2", Number::f16, 1, 9, 17, {13, 3, 2, 2, 2}, {12, 3, 2, 2, 2}},
    {"uneven", Number::tf32, 1, 17, 20, {12, 3, 2, 0, 2, 1, 3}, {11, 3, 3, 3, 1, 4, 2}, 20},
    {"7x7, stride 2, three channels", Number::bf16, 1, 3, 64, {10, 7, 2, 3}, {9, 7, 2, 3}},
    {"3x3, picked units", Number::bf16, 1, 16, 80, kThree5, kThree6, 0, 0, Activation::relu, 31},
    {"3x3, counts", Number::bf16, 2, 24, 80, kThree5, kThree6, 0, 0, Activation::relu, -1, 0, 11, 30},
    {"3x3, part of the output's units", Number::bf16, 1, 16, 12, kThree5, kThree6, 0, 0, Activation::relu, -1, 7},
    {"3x3, one pixel, split depth",
     Number::f16,
     3,
     64,
     20,
     {1, 3, 1, 1},
     {1, 3, 1, 1},
     0,
     0,
     Activation::relu,
     -1,
     0,
     -1,
     -1,
     64},
    {"3x3, large tile", Number::bf16, 4, 8, 70, {6, 3, 1, 1, 1, 2, 2}, {6, 3, 1, 1, 1, 2, 2}, 0, 0, Activation::relu},
};

ConvAxis axis(const Axis& a) {
  return {a.in,      (a.in + 2 * a.padding - (a.kernel - 1) * a.dilation - 1) / a.stride + 1,
          a.kernel,  a.stride,
          a.padding, a.dilation,
          a.low,     a.high};
}

void run(const Case& c, const std::string& order) {
  const std::string what = "conv2d " + order + ", " + name(c.number) + ", " + c.name;
  const ConvAxis h = axis(c.h), w = axis(c.w);
  const int64_t taps = c.h.kernel * c.w.kernel, pixels = c.batch * h.out * w.out;
  const int64_t pixel_stride = c.pixel_stride > 0 ? c.pixel_stride : padded_depth(c.channels, c.number);
  const int64_t tap_stride = c.tap_stride > 0 ? c.tap_stride : padded_depth(c.channels, c.number);
  const int64_t units = c.picked < 0 ? c.units : c.picked, pixel_units = units + c.more_units;
  const double scale = 1 / std::sqrt(std::max<double>(1, static_cast<double>(taps * c.channels)));
  Operand input = random_matrix(c.number, c.batch * h.in * w.in, c.channels, pixel_stride);
  Operand weight = random_matrix(c.number, c.units * taps, c.channels, tap_stride, scale);
  const int64_t zones = zone_count(h) * zone_count(w);
  std::vector<float> bias = random_floats(zones * std::max(c.units, pixel_units));
  std::vector<int64_t> indices = c.picked < 0 ? std::vector<int64_t>() : subset(c.units, c.picked);
  Operand output(c.number, (pixels - 1) * pixel_units + units);
  const int64_t active = c.unit_count < 0 ? units : c.unit_count;
  const int64_t channels = c.channel_count < 0 ? c.channels : c.channel_count;
  std::vector<double> usage(4 * units, 0.0);
  const auto channel_count = std::make_unique<int>(c.channel_count), unit_count = std::make_unique<int>(c.unit_count);

  cuda::Conv2dParams p{};
  p.number = c.number;
  p.input = input.data();
  p.stride_c = 1;
  p.stride_w = pixel_stride;
  p.stride_h = w.in * pixel_stride;
  p.stride_n = h.in * p.stride_h;
  p.weight = weight.data();
  p.tap_stride = tap_stride;
  p.unit_stride = taps * tap_stride;
  p.indices = c.picked < 0 ? nullptr : indices.data();
  p.bias = bias.data();
  p.output = output.data();
  p.batch = c.batch;
  p.channels = c.channels;
  p.units = units;
  p.pixel_units = pixel_units;
  p.h = h;
  p.w = w;
  p.activation = {c.activation, 0.1f};
  p.channel_count = c.channel_count < 0 ? nullptr : channel_count.get();
  p.unit_count = c.unit_count < 0 ? nullptr : unit_count.get();
  p.usage = usage.data();
  p.usage_stride = units;
  const ProductPlan plan = conv2d_plan(p, c.multiprocessors);
  std::vector<char> workspace(plan.workspace(), static_cast<char>(0xff));
  std::fill_n(workspace.begin(), plan.counter_bytes, 0);
  p.workspace = workspace.data();
  if (what.find("split") != std::string::npos) expect(plan.parts > 1, what + ": is split");

  const int status = conv2d(p, plan, nullptr);
  expect(status == 0, what + ": " + emulation::error());
  if (status != 0) return;
  std::vector<double> expected, actual;
  bool untouched = true;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t n = pixel / (h.out * w.out), y = pixel / w.out % h.out, x = pixel % w.out;
    const int64_t zone = zone_of(h, y) * zone_count(w) + zone_of(w, x);
    for (int64_t u = 0; u < active; ++u) {
      const int64_t row = c.picked < 0 ? u : indices[u];
      double sum = bias[zone * pixel_units + row];
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t from_y = y * h.stride - h.padding + tap / w.kernel * h.dilation;
        const int64_t from_x = x * w.stride - w.padding + tap % w.kernel * w.dilation;
        if (from_y < 0 || from_y >= h.in || from_x < 0 || from_x >= w.in) continue;
        const int64_t at = ((n * h.in + from_y) * w.in + from_x) * pixel_stride;
        for (int64_t k = 0; k < channels; ++k) {
          sum += input.values[at + k] * weight.values[(row * taps + tap) * tap_stride + k];
        }
      }
      expected.push_back(activate(sum, p.activation));
      actual.push_back(output.get(pixel * pixel_units + u));
    }
    const int64_t end = std::min<int64_t>((pixel + 1) * pixel_units, output.size());
    for (int64_t i = pixel * pixel_units + active; i < end; ++i) untouched = untouched && std::isnan(output.get(i));
  }
  expect(close(actual, expected, tolerance(c.number)), what + ": values");
  expect(untouched, what + ": nothing else is written");
  std::vector<double> found;
  for (int64_t i = 0; i < 4 * units; ++i) {
    if (i % units < active) found.push_back(usage[i]);
  }
  expect(close(found, usage_of(expected, active), tolerance(c.number)), what + ": usage");
}

}  // namespace

void test_conv2d() {
  for (const Orders& order : kOrders) {
    emulation::set_order(order.order, 11);
    for (const Case& c : kCases) run(c, order.name);
  }
}
