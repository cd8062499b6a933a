#include "check.h"
#include "cuda/depthwise.h"

namespace {

using namespace check;
using namespace dynprune;
using namespace dynprune::cuda;

struct Case {
  const char* name;
  Number number;
  int64_t batch, channels, units;
  ConvAxis h, w;
  bool picked = false;  // units read some channels of more
  Activation activation = Activation::none;
  int unit_count = -1;
};

const Case kCases[] = {
    {"one of each", Number::f32, 1, 1, 1, {1, 1, 1, 1, 0, 1, 1, 1}, {1, 1, 1, 1, 0, 1, 1, 1}},
    {"3x3", Number::bf16, 2, 70, 70, {5, 5, 3, 1, 1, 1, 1, 1}, {6, 6, 3, 1, 1, 1, 1, 1}, false, Activation::relu},
    {"3x3, zones", Number::f32, 1, 17, 17, {5, 5, 3, 1, 1, 1, 2, 2}, {4, 4, 3, 1, 1, 1, 2, 2}},
    {"5x5, stride 2, dilation 2", Number::f16, 1, 9, 9, {12, 4, 5, 2, 2, 2, 1, 1}, {11, 4, 5, 2, 2, 2, 1, 1}},
    {"7x7, more taps than a piece", Number::bf16, 1, 12, 12, {4, 4, 7, 1, 3, 1, 1, 1}, {3, 3, 7, 1, 3, 1, 1, 1}},
    {"picked channels", Number::f32, 1, 40, 23, {3, 3, 3, 1, 1, 1, 1, 1}, {3, 3, 3, 1, 1, 1, 1, 1}, true},
    {"counts", Number::bf16, 3, 80, 80, {5, 5, 3, 1, 1, 1, 1, 1}, {5, 5, 3, 1, 1, 1, 1, 1}, false, Activation::relu, 9},
};

void run(const Case& c, const std::string& order) {
  const std::string what = "depthwise " + order + ", " + name(c.number) + ", " + c.name;
  const int64_t taps = c.h.kernel * c.w.kernel, pixels = c.batch * c.h.out * c.w.out, pixel_stride = c.channels + 1;
  Operand input = random_matrix(c.number, c.batch * c.h.in * c.w.in, c.channels, pixel_stride);
  Operand weight = random_matrix(c.number, c.units * taps, 1, 8, 1 / std::sqrt(static_cast<double>(taps)));
  const std::vector<float> bias = random_floats(zone_count(c.h) * zone_count(c.w) * c.units);
  const std::vector<int64_t> channels = subset(c.channels, c.units);
  Operand output(c.number, pixels * c.units);
  std::vector<double> usage(4 * c.units, 0.0);
  const int unit_count = c.unit_count;
  DepthwiseParams p{};
  p.number = c.number;
  p.input = input.data();
  p.stride_c = 1;
  p.stride_w = pixel_stride;
  p.stride_h = c.w.in * pixel_stride;
  p.stride_n = c.h.in * p.stride_h;
  p.weight = weight.data();
  p.tap_stride = 8;
  p.unit_stride = taps * 8;
  p.bias = bias.data();
  p.output = output.data();
  p.batch = c.batch;
  p.units = c.units;
  p.pixel_units = c.units;
  p.h = c.h;
  p.w = c.w;
  p.activation = {c.activation, 0.1f};
  p.unit_count = c.unit_count < 0 ? nullptr : &unit_count;
  p.unit_channels = c.picked ? channels.data() : nullptr;
  p.usage = usage.data();
  p.usage_stride = c.units;
  const ProductPlan plan = depthwise_plan(p);
  std::vector<char> workspace(plan.workspace(), static_cast<char>(0xff));
  p.workspace = workspace.data();
  const int status = depthwise(p, plan, nullptr);
  expect(status == 0, what + ": " + emulation::error());
  if (status != 0) return;

  const int64_t active = c.unit_count < 0 ? c.units : c.unit_count;
  std::vector<double> expected, actual, found;
  bool untouched = true;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t n = pixel / (c.h.out * c.w.out), y = pixel / c.w.out % c.h.out, x = pixel % c.w.out;
    for (int64_t u = 0; u < c.units; ++u) {
      const double value = output.get(pixel * c.units + u);
      if (u >= active) {
        untouched = untouched && std::isnan(value);
        continue;
      }
      double sum = bias[(zone_of(c.h, y) * zone_count(c.w) + zone_of(c.w, x)) * c.units + u];
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t from_y = y * c.h.stride - c.h.padding + tap / c.w.kernel * c.h.dilation;
        const int64_t from_x = x * c.w.stride - c.w.padding + tap % c.w.kernel * c.w.dilation;
        if (from_y < 0 || from_y >= c.h.in || from_x < 0 || from_x >= c.w.in) continue;
        const int64_t at = ((n * c.h.in + from_y) * c.w.in + from_x) * pixel_stride + (c.picked ? channels[u] : u);
        sum += input.values[at] * weight.values[(u * taps + tap) * 8];
      }
      expected.push_back(activate(sum, p.activation));
      actual.push_back(value);
    }
  }
  expect(close(actual, expected, tolerance(c.number)), what + ": values");
  expect(untouched, what + ": nothing else is written");
  for (int64_t i = 0; i < 4 * c.units; ++i) {
    if (i % c.units < active) found.push_back(usage[i]);
  }
  expect(close(found, usage_of(expected, active), tolerance(c.number)), what + ": usage");
}

}  // namespace

void test_depthwise() {
  for (const Orders& order : kOrders) {
    emulation::set_order(order.order, 23);
    for (const Case& c : kCases) run(c, order.name);
  }
}
