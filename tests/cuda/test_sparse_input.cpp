#include "check.h"
#include "cuda/sparse_input.h"

namespace {

using namespace check;
using namespace dynprune;
using namespace dynprune::cuda;

struct Case {
  const char* name;
  Number number;
  int64_t rows, depth, units;
  double share;  // of the inputs that are not near zero
  float threshold = 0;
  bool input_major = true;
  Activation activation = Activation::none;
  int multiprocessors = 1;
  int depth_count = -1, unit_count = -1;
};

const Case kCases[] = {
    {"one of each", Number::f32, 1, 1, 1, 1},
    {"nothing needed", Number::bf16, 3, 40, 20, 0},
    {"half needed", Number::bf16, 2, 300, 70, 0.5, 0, true, Activation::relu},
    {"all needed, float32", Number::f32, 8, 130, 66, 1, 0, true, Activation::gelu},
    {"threshold", Number::f16, 5, 520, 64, 0.3, 0.05f},
    {"unit-major weights", Number::bf16, 1, 257, 30, 0.4, 0, false},
    {"split depth", Number::f32, 4, 900, 67, 0.5, 0, true, Activation::silu, 64},
    {"counts", Number::bf16, 2, 300, 140, 0.5, 0, true, Activation::relu, 1, 123, 65},
};

void run(const Case& c, const std::string& order) {
  const std::string what = "sparse_input_linear " + order + ", " + name(c.number) + ", " + c.name;
  Operand input = random_matrix(c.number, c.rows, c.depth, c.depth + 3);
  for (int64_t k = 0; k < c.depth; ++k) {
    const bool needed = engine() % 1000 < c.share * 1000;
    for (int64_t r = 0; r < c.rows && !needed; ++r) {
      input.set(r * (c.depth + 3) + k, c.threshold * static_cast<float>(r % 2 ? 0.9 : -0.5));
    }
  }
  const int64_t stride = c.input_major ? (c.units + 7) / 8 * 8 : c.depth;
  Operand weight = c.input_major ? random_matrix(c.number, c.depth, c.units, stride, 0.1)
                                 : random_matrix(c.number, c.units, c.depth, stride, 0.1);
  std::vector<float> bias = random_floats(c.units);
  Operand output(c.number, c.rows * c.units);
  std::vector<double> usage(4 * c.units, 0.0);
  int counts[2] = {c.depth_count, c.unit_count};
  SparseInputParams p{};
  p.number = c.number;
  p.input = input.data();
  p.input_stride = c.depth + 3;
  p.weight = weight.data();
  p.stride_k = c.input_major ? stride : 1;
  p.stride_u = c.input_major ? 1 : stride;
  p.bias = bias.data();
  p.output = output.data();
  p.output_stride = c.units;
  p.rows = c.rows;
  p.depth = c.depth;
  p.units = c.units;
  p.depth_count = c.depth_count < 0 ? nullptr : &counts[0];
  p.unit_count = c.unit_count < 0 ? nullptr : &counts[1];
  p.threshold = c.threshold;
  p.activation = {c.activation, 0.1f};
  p.usage = usage.data();
  p.usage_stride = c.units;
  const ProductPlan plan = sparse_input_plan(p, c.multiprocessors);
  std::vector<char> workspace(plan.workspace(), static_cast<char>(0xff));
  std::fill_n(workspace.begin(), plan.counter_bytes, 0);
  p.workspace = workspace.data();
  if (c.multiprocessors > 1) expect(plan.parts > 1, what + ": is split");
  const int status = sparse_input(p, plan, nullptr);
  expect(status == 0, what + ": " + emulation::error());
  if (status != 0) return;

  const int64_t depth = c.depth_count < 0 ? c.depth : c.depth_count, units = c.unit_count < 0 ? c.units : c.unit_count;
  std::vector<double> expected, actual, found;
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t u = 0; u < units; ++u) {
      double sum = bias[u];
      for (int64_t k = 0; k < depth; ++k) {
        bool needed = false;
        for (int64_t other = 0; other < c.rows; ++other) {
          needed = needed || std::fabs(input.values[other * p.input_stride + k]) > c.threshold;
        }
        if (needed) sum += input.values[r * p.input_stride + k] * weight.values[k * p.stride_k + u * p.stride_u];
      }
      expected.push_back(activate(sum, p.activation));
      actual.push_back(output.get(r * c.units + u));
    }
  }
  expect(close(actual, expected, tolerance(c.number)), what + ": values");
  for (int64_t i = 0; i < 4 * c.units; ++i) {
    if (i % c.units < units) found.push_back(usage[i]);
  }
  expect(close(found, usage_of(expected, units), tolerance(c.number)), what + ": usage");
}

// What is left out is not read: its weights may be anything.
void run_unread(const std::string& order) {
  Operand input(Number::f32, 4, 0.0), weight(Number::f32, 4 * 16), output(Number::f32, 16);
  input.set(2, 3.f);
  for (int64_t u = 0; u < 16; ++u) weight.set(2 * 16 + u, 2.f);
  SparseInputParams p{};
  p.number = Number::f32;
  p.input = input.data();
  p.input_stride = 4;
  p.weight = weight.data();
  p.stride_k = 16;
  p.stride_u = 1;
  p.output = output.data();
  p.output_stride = 16;
  p.rows = 1;
  p.depth = 4;
  p.units = 16;
  const bool done = sparse_input(p, sparse_input_plan(p, 1), nullptr) == 0;
  bool right = done;
  for (int64_t u = 0; u < 16; ++u) right = right && output.get(u) == 6.0;
  expect(right, "sparse_input_linear " + order + ": weights of inputs that are left out are not read");
}

}  // namespace

void test_sparse_input() {
  for (const Orders& order : kOrders) {
    emulation::set_order(order.order, 13);
    for (const Case& c : kCases) run(c, order.name);
    run_unread(order.name);
  }
}
