// What the tests of the kernels share: counting, random numbers, guard zones, and running a kernel's tasks as threads
// would.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

inline int passed = 0, failed = 0;
inline bool unreleased = false;  // products were computed and gemm_release not called since, see gemm.cpp

inline void expect(bool condition, const std::string& what) {
  condition ? ++passed : ++failed;
  if (!condition) std::printf("FAILED %s\n", what.c_str());
}

inline std::mt19937 engine(1);

inline std::vector<float> random_floats(int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& v : values) v = normal(engine);
  return values;
}

// An output of NaN between two guard zones, which nobody may write to.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t n, T fill = std::numeric_limits<T>::quiet_NaN()) : size_(n), all_(n + 2 * kZone, kMark) {
    std::fill_n(data(), n, fill);
  }
  T* data() { return all_.data() + kZone; }
  T operator[](int64_t i) const { return all_[kZone + i]; }
  bool intact() const {
    auto is_mark = [](T v) { return v == kMark; };
    return std::all_of(all_.begin(), all_.begin() + kZone, is_mark) &&
           std::all_of(all_.begin() + kZone + size_, all_.end(), is_mark);
  }

 private:
  static constexpr int64_t kZone = 128;
  static constexpr T kMark = 12345;
  int64_t size_;
  std::vector<T> all_;
};

// Whether all of `actual` is within 1e-5 of `expected`, relative to the largest value. NaN is not.
template <typename T>
bool close(const Guarded<T>& actual, const std::vector<double>& expected, double tolerance = 1e-5) {
  double largest = 1e-30, worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(actual[i]) - expected[i]);
    if (std::isnan(difference)) return false;
    worst = std::max(worst, difference);
    largest = std::max(largest, std::fabs(expected[i]));
  }
  return worst <= tolerance * largest;
}

// Within a tile the sums are float32 about one row's values; where that row is the outlier of the tile, squares cancel.
constexpr double kUsageTolerance = 5e-5;

inline std::vector<int64_t> counting(int64_t n) {
  std::vector<int64_t> list(n);
  for (int64_t i = 0; i < n; ++i) list[i] = i;
  return list;
}

// Sums over the rows of `outputs` [rows, units], as the kernels lay them out: [4, padded units].
inline std::vector<double> usage_of(const std::vector<double>& outputs, int64_t units) {
  const int64_t stride = dynprune::padded_units(units);
  std::vector<double> usage(dynprune::kUsageRows * stride, 0.0);
  for (size_t i = 0; i < outputs.size(); ++i) {
    double* at = usage.data() + i % units;
    at[0] += std::fabs(outputs[i]);
    at[stride] += outputs[i];
    at[2 * stride] += outputs[i] * outputs[i];
    at[3 * stride] += 1;
  }
  return usage;
}

// Runs all tasks in two ranges, as two threads would, and compares outputs and usage.
template <typename Params, typename Run>
void check(const std::string& what, Params p, int64_t tasks, const std::vector<double>& expected, const Run& run) {
  Guarded<float> output(static_cast<int64_t>(expected.size()));
  Guarded<double> usage(dynprune::kUsageRows * dynprune::padded_units(p.units), 0.0);
  p.output = output.data();
  for (const auto& [begin, end] : {std::pair{int64_t{0}, tasks / 2}, std::pair{tasks / 2, tasks}}) {
    run(p, usage.data(), begin, end);
    expect(!unreleased, what + ": gemm_release at the end of a range");
  }
  expect(close(output, expected), what + ": output");
  expect(output.intact(), what + ": guard zones of the output");
  expect(p.units == 0 || close(usage, usage_of(expected, p.units), kUsageTolerance), what + ": usage");
  expect(usage.intact(), what + ": guard zones of the usage");
}

struct LinearShape {
  int64_t rows, depth, units, input_stride;
  bool gather;
};

struct ConvShape {
  const char* name;
  int64_t batch, channels, units;
  dynprune::ConvAxis h, w;
  bool channels_last, gather;
  bool depthwise = false;
};

// The convolutions that every kernel of them is tried on.
extern const std::vector<ConvShape> kConvShapes;

inline dynprune::ConvAxis axis(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                               int64_t low = 1, int64_t high = 1) {
  return {in,  (in + 2 * padding - (kernel - 1) * dilation - 1) / stride + 1, kernel, stride, padding, dilation, low,
          high};
}

// Packed panels of the columns of a master, which are checked as well.
std::vector<float> pack(const dynprune::Kernels& kernels, const std::vector<float>& master, int64_t units,
                        const std::vector<int64_t>& columns);

// The reference of a convolution with ReLU: element k of a unit's weights is [channel][tap], or [tap] if depthwise.
std::vector<double> convolved(const ConvShape& s, const dynprune::Convolution& p, const std::vector<int64_t>& indices,
                              const std::vector<float>& input, const std::vector<float>& master,
                              const std::vector<float>& bias);

// Each on one instruction set's kernels.
void test_linear(const dynprune::Kernels& kernels);
void test_linear(const dynprune::Kernels& kernels, const LinearShape& shape);
void test_pack(const dynprune::Kernels& kernels);
void test_lstm(const dynprune::Kernels& kernels);
void test_conv2d(const dynprune::Kernels& kernels);
void test_bf16(const dynprune::Kernels& kernels);
void test_max_pool2d(const dynprune::Kernels& kernels);

// On none of them.
void test_axes();
