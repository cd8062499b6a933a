// What the tests of the CUDA kernels share: counting, random operands of each number type, comparison with sums in
// float64. Buffers are exactly as large as they must be, so that the address sanitizer sees what goes past them.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "emulation.h"

namespace check {

using dynprune::cuda::Number;

inline int passed = 0, failed = 0;

inline void expect(bool condition, const std::string& what) {
  condition ? ++passed : ++failed;
  if (!condition) std::printf("FAILED %s\n", what.c_str());
}

inline std::mt19937 engine(1);

inline const char* name(Number n) {
  return n == Number::bf16 ? "bf16" : n == Number::f16 ? "f16" : n == Number::tf32 ? "tf32" : "f32";
}

// Numbers as a kernel reads them, and what they are.
struct Operand {
  Number number;
  std::vector<char> bytes;
  std::vector<double> values;

  Operand(Number n, int64_t size, double fill = std::numeric_limits<double>::quiet_NaN())
      : number(n), bytes(size * dynprune::cuda::element_bytes(n)), values(size, fill) {
    for (int64_t i = 0; i < size; ++i) set(i, static_cast<float>(fill));
  }
  void* data() { return bytes.data(); }
  int64_t size() const { return static_cast<int64_t>(values.size()); }

  void set(int64_t i, float value) {
    using namespace dynprune::cuda;
    if (element_bytes(number) == 4) {
      std::memcpy(&bytes[4 * i], &value, 4);
      values[i] = value;
      return;
    }
    const uint16_t half = number == Number::f16 ? to_f16(value) : to_bf16(value);
    std::memcpy(&bytes[2 * i], &half, 2);
    values[i] = number == Number::f16 ? from_f16(half) : from_bf16(half);
  }
  double get(int64_t i) const {
    using namespace dynprune::cuda;
    float value;
    uint16_t half;
    if (element_bytes(number) == 4) {
      std::memcpy(&value, &bytes[4 * i], 4);
      return value;
    }
    std::memcpy(&half, &bytes[2 * i], 2);
    return number == Number::f16 ? from_f16(half) : from_bf16(half);
  }
};

// [rows, stride] of which the first `columns` are random; NaN beyond them.
inline Operand random_matrix(Number n, int64_t rows, int64_t columns, int64_t stride, double scale = 1) {
  std::normal_distribution<float> normal;
  Operand m(n, rows == 0 ? 0 : (rows - 1) * stride + columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) m.set(r * stride + c, static_cast<float>(scale) * normal(engine));
  }
  return m;
}

inline std::vector<float> random_floats(int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& v : values) v = normal(engine);
  return values;
}

// Increasing indices: `count` of `total`.
inline std::vector<int64_t> subset(int64_t total, int64_t count) {
  std::vector<int64_t> picked;
  for (int64_t i = 0; i < total && static_cast<int64_t>(picked.size()) < count; ++i) {
    if (engine() % (total - i) < static_cast<uint64_t>(count) - picked.size()) picked.push_back(i);
  }
  return picked;
}

inline double tolerance(Number n) {
  return n == Number::bf16 ? 1e-2 : n == Number::f16 ? 2e-3 : n == Number::tf32 ? 2e-3 : 1e-5;
}

// Whether the values are within `limit` of those expected, relative to the largest. NaN is not.
inline bool close(const std::vector<double>& actual, const std::vector<double>& expected, double limit) {
  double largest = 1e-30, worst = actual.size() == expected.size() ? 0 : 1e300;
  for (size_t i = 0; i < expected.size() && i < actual.size(); ++i) {
    const double difference = std::fabs(actual[i] - expected[i]);
    if (!(difference <= worst)) worst = std::isnan(difference) ? 1e300 : difference;
    largest = std::max(largest, std::fabs(expected[i]));
  }
  return worst <= limit * largest;
}

inline double activate(double x, const dynprune::ActivationSpec& spec) {
  using dynprune::Activation;
  switch (spec.kind) {
    case Activation::none: return x;
    case Activation::relu: return x < 0 ? 0 : x;
    case Activation::leaky_relu: return x < 0 ? x * spec.slope : x;
    case Activation::gelu: return x * 0.5 * (1 + std::erf(x * std::sqrt(0.5)));
    case Activation::gelu_tanh: return x * 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::sigmoid: return 1 / (1 + std::exp(-x));
  }
  return x;
}

// Usage [4][units] of outputs [rows][units].
inline std::vector<double> usage_of(const std::vector<double>& outputs, int64_t units) {
  std::vector<double> usage(4 * units, 0.0);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const size_t unit = i % units;
    usage[unit] += std::fabs(outputs[i]);
    usage[units + unit] += outputs[i];
    usage[2 * units + unit] += outputs[i] * outputs[i];
    usage[3 * units + unit] += 1;
  }
  return usage;
}

// Runs the tests of one file under every order of threads.
struct Orders {
  const char* name;
  emulation::Order order;
};
inline constexpr Orders kOrders[] = {{"forward", emulation::Order::forward},
                                     {"reverse", emulation::Order::reverse},
                                     {"random", emulation::Order::random}};

}  // namespace check

void test_emulation();
void test_index();
void test_linear();
void test_conv2d();
void test_depthwise();
void test_sparse_input();
void test_gather();
void test_lstm();
