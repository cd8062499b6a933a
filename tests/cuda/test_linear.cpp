#include <memory>

#include "check.h"
#include "cuda/linear.h"

namespace {

using namespace check;
using namespace dynprune;
using namespace dynprune::cuda;

struct Case {
  const char* name;
  Number number;
  int64_t rows, depth, units;
  Activation activation = Activation::none;
  int64_t input_stride = 0, weight_stride = 0, output_stride = 0;  // 0: tight, weights padded
  bool bias = true, usage = true, wide = false;
  int64_t picked = -1;                    // rows of a larger master
  int depth_count = -1, unit_count = -1;  // in device memory
  int multiprocessors = 1;                // few: large tiles, no split
};

const Case kCases[] = {
    {"one of each", Number::f32, 1, 1, 1},
    {"no depth", Number::f32, 3, 0, 5},
    {"flat", Number::bf16, 5, 72, 70, Activation::relu},
    {"flat, two row lengths", Number::f16, 16, 130, 64, Activation::gelu},
    {"flat, float32", Number::f32, 8, 77, 130, Activation::silu},
    {"flat, split depth", Number::bf16, 1, 1100, 66, Activation::relu, 0, 0, 0, true, true, false, -1, -1, -1, 64},
    {"small", Number::bf16, 33, 200, 40, Activation::relu},
    {"small, unaligned input", Number::bf16, 65, 37, 63, Activation::leaky_relu, 37},
    {"small, unaligned weight", Number::f16, 20, 37, 66, Activation::tanh, 40, 37},
    {"small, tf32", Number::tf32, 40, 66, 64, Activation::gelu_tanh, 68},
    {"small, float32", Number::f32, 70, 70, 65, Activation::sigmoid, 72},
    {"small, split depth", Number::f32, 66, 300, 50, Activation::relu, 0, 0, 0, true, true, false, -1, -1, -1, 8},
    {"small, no bias, no usage", Number::bf16, 64, 64, 64, Activation::none, 0, 0, 0, false, false},
    {"small, wide output", Number::bf16, 17, 64, 48, Activation::none, 0, 0, 52, true, true, true},
    {"small, wider output rows", Number::bf16, 17, 64, 48, Activation::relu, 0, 0, 56},
    {"small, odd output rows", Number::f16, 17, 64, 47, Activation::relu, 0, 0, 51},
    {"small, picked units", Number::bf16, 30, 64, 150, Activation::relu, 0, 0, 0, true, true, false, 67},
    {"small, counts", Number::bf16, 30, 144, 150, Activation::relu, 0, 0, 0, true, true, false, -1, 77, 65},
    {"small, counts, split depth", Number::bf16, 30, 640, 100, Activation::relu, 0, 0, 0, true, true, false, -1, 200,
     30, 64},
    {"small, no units counted", Number::bf16, 30, 64, 100, Activation::relu, 0, 0, 0, true, true, false, -1, 64, 0},
    {"large", Number::bf16, 140, 72, 130, Activation::relu},
    {"large, float32", Number::f32, 129, 40, 128, Activation::none},
    {"large, deep", Number::f16, 128, 330, 70, Activation::none},
    {"large, tf32, counts", Number::tf32, 130, 64, 140, Activation::relu, 0, 0, 0, true, true, false, -1, 33, 129},
};

void run(const Case& c, const std::string& order) {
  const std::string what = "linear " + order + ", " + name(c.number) + ", " + c.name;
  const int64_t master = c.picked < 0 ? c.units : c.units, units = c.picked < 0 ? c.units : c.picked;
  const int64_t input_stride = c.input_stride > 0 ? c.input_stride : padded_depth(c.depth, c.number);
  const int64_t weight_stride = c.weight_stride > 0 ? c.weight_stride : padded_depth(c.depth, c.number);
  const int64_t output_stride = c.output_stride > 0 ? c.output_stride : units;
  const double scale = 1 / std::sqrt(std::max<double>(1, static_cast<double>(c.depth)));
  Operand input = random_matrix(c.number, c.rows, c.depth, input_stride);
  Operand weight = random_matrix(c.number, master, c.depth, weight_stride, scale);
  std::vector<float> bias = random_floats(master);
  std::vector<int64_t> indices = c.picked < 0 ? std::vector<int64_t>() : subset(master, c.picked);
  const int64_t active = c.unit_count < 0 ? units : c.unit_count, depth = c.depth_count < 0 ? c.depth : c.depth_count;
  Operand output(c.wide ? Number::f32 : c.number, (c.rows - 1) * output_stride + units);
  std::vector<double> usage(4 * units, 1.0);  // added to
  // Counts as the device has them, each alone in its memory.
  const auto depth_count = std::make_unique<int>(c.depth_count), unit_count = std::make_unique<int>(c.unit_count);

  LinearParams p{};
  p.number = c.number;
  p.input = input.data();
  p.input_stride = input_stride;
  p.weight = weight.data();
  p.weight_stride = weight_stride;
  p.indices = c.picked < 0 ? nullptr : indices.data();
  p.bias = c.bias ? bias.data() : nullptr;
  p.output = output.data();
  p.output_stride = output_stride;
  p.wide_output = c.wide;
  p.rows = c.rows;
  p.depth = c.depth;
  p.units = units;
  p.depth_count = c.depth_count < 0 ? nullptr : depth_count.get();
  p.unit_count = c.unit_count < 0 ? nullptr : unit_count.get();
  p.activation = {c.activation, 0.1f};
  p.usage = c.usage ? usage.data() : nullptr;
  p.usage_stride = units;
  const ProductPlan plan = linear_plan(p, c.multiprocessors);
  std::vector<char> workspace(plan.workspace(), static_cast<char>(0xff));
  std::fill_n(workspace.begin(), plan.counter_bytes, 0);
  p.workspace = workspace.data();
  if (std::string(c.name).find("split") != std::string::npos) expect(plan.parts > 1, what + ": is split");

  const int status = linear(p, plan, nullptr);
  expect(status == 0, what + ": " + emulation::error());
  if (status != 0) return;
  std::vector<double> expected, actual, exact;
  bool untouched = true;
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t u = 0; u < active; ++u) {
      const int64_t row = c.picked < 0 ? u : indices[u];
      double sum = c.bias ? bias[row] : 0;
      for (int64_t k = 0; k < depth; ++k)
        sum += input.values[r * input_stride + k] * weight.values[row * weight_stride + k];
      expected.push_back(activate(sum, p.activation));
      actual.push_back(output.get(r * output_stride + u));
    }
    const int64_t end = std::min<int64_t>((r + 1) * output_stride, output.size());
    for (int64_t i = r * output_stride + active; i < end; ++i) untouched = untouched && std::isnan(output.get(i));
  }
  expect(close(actual, expected, tolerance(c.number)), what + ": values");
  expect(untouched, what + ": nothing else is written");
  if (c.usage && active > 0) {
    std::vector<double> sums = usage_of(expected, active), found;
    for (double& s : sums) s += 1;
    for (int row = 0; row < 4; ++row) {
      for (int64_t u = 0; u < active; ++u) found.push_back(usage[row * units + u]);
    }
    expect(close(found, sums, tolerance(c.number)), what + ": usage");
  }
  bool clean = true;
  for (int64_t i = 0; i < plan.counter_bytes; ++i) clean = clean && workspace[i] == 0;
  expect(clean, what + ": the workspace is left as it was");
}

}  // namespace

void test_linear() {
  for (const Orders& order : kOrders) {
    emulation::set_order(order.order, 7);
    for (const Case& c : kCases) run(c, order.name);
  }
}
