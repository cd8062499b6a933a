// The kernels without torch: every instruction set this CPU has, against plain double loops, with guard zones around
// everything that is written. Built with DYNPRUNE_BUILD_TESTS, by tests/test_cpp.py with the sanitizers on.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/kernels.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

int passed = 0, failed = 0;

void expect(bool condition, const std::string& what) {
  condition ? ++passed : ++failed;
  if (!condition) std::printf("FAILED %s\n", what.c_str());
}

std::mt19937 engine(1);

std::vector<float> random_floats(int64_t n) {
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

bool unreleased = false;  // products were computed and gemm_release not called since

std::vector<float> pack(const dynprune::Kernels& kernels, const std::vector<float>& master, int64_t units,
                        const std::vector<int64_t>& columns) {
  const int64_t depth = static_cast<int64_t>(columns.size());
  dynprune::PackParams p{};
  p.master = master.data();
  p.row_stride = units == 0 ? 0 : static_cast<int64_t>(master.size()) / units;
  std::vector<int32_t> places(p.row_stride, -1);
  for (size_t k = 0; k < columns.size() && units > 0; ++k) places[columns[k]] = static_cast<int32_t>(k);
  p.places = places.data();
  p.units = units;
  p.depth = depth;
  p.taps = 1;
  Guarded<float> packed(depth * dynprune::padded_units(units)), in_order(depth * dynprune::padded_units(units));
  p.packed = packed.data();
  kernels.pack(p, 0, dynprune::pack_tasks(p));
  bool right = true, alike = true;
  if (depth == p.row_stride && std::is_sorted(columns.begin(), columns.end())) {  // all columns may be given by none
    p.places = nullptr;
    p.packed = in_order.data();
    kernels.pack(p, 0, dynprune::pack_tasks(p));
    for (int64_t i = 0; i < depth * dynprune::padded_units(units); ++i) alike = alike && packed[i] == in_order[i];
    alike = alike && in_order.intact();
  }
  for (int64_t u = 0; u < dynprune::padded_units(units); ++u) {
    const int64_t panel = u / dynprune::kPanel * dynprune::kPanel;
    const int64_t width = dynprune::padded_units(std::min(dynprune::kPanel, units - panel));
    for (int64_t k = 0; k < depth; ++k) {
      const float wanted = u < units ? master[u * p.row_stride + columns[k]] : 0.f;
      right = right && packed[panel * depth + k * width + u - panel] == wanted;
    }
  }
  const std::string what = std::string(kernels.isa) + " pack " + std::to_string(units) + "x" + std::to_string(depth);
  expect(right, what + ": values");
  expect(packed.intact(), what + ": guard zones");
  expect(alike, what + ": all columns");
  return {packed.data(), packed.data() + depth * dynprune::padded_units(units)};
}

std::vector<int64_t> counting(int64_t n) {
  std::vector<int64_t> list(n);
  for (int64_t i = 0; i < n; ++i) list[i] = i;
  return list;
}

// Sums over the rows of `outputs` [rows, units], as the kernels lay them out: [4, padded units].
std::vector<double> usage_of(const std::vector<double>& outputs, int64_t units) {
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

// Within a tile the sums are float32 about one row's values; where that row is the outlier of the tile, squares cancel.
constexpr double kUsageTolerance = 5e-5;

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

void test_linear(const dynprune::Kernels& kernels, const LinearShape& s) {
  const std::string what = std::string(kernels.isa) + " linear " + std::to_string(s.rows) + "x" +
                           std::to_string(s.depth) + "x" + std::to_string(s.units) + (s.gather ? " gathered" : "");
  const std::vector<float> input = random_floats(s.rows * s.input_stride), master = random_floats(s.units * s.depth);
  const std::vector<float> bias = random_floats(s.units);
  const std::vector<float> weight = pack(kernels, master, s.units, counting(s.depth));
  std::vector<int64_t> indices;  // every other column
  for (int64_t k = 0; k < s.depth; ++k) indices.push_back(s.gather ? 2 * k : k);
  std::vector<double> expected;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t u = 0; u < s.units; ++u) {
      double sum = bias[u];
      for (int64_t k = 0; k < s.depth; ++k)
        sum += double(input[r * s.input_stride + indices[k]]) * master[u * s.depth + k];
      expected.push_back(std::max(sum, 0.0));
    }
  }
  dynprune::LinearParams p{};
  p.row_tile = s.rows > 8 ? dynprune::kRowTile : 8;
  p.group = 1;
  p.input = input.data();
  p.input_stride = s.input_stride;
  p.input_indices = s.gather ? indices.data() : nullptr;
  p.weight = weight.data();
  p.bias = bias.data();
  p.rows = s.rows;
  p.depth = s.depth;
  p.units = s.units;
  p.activation.kind = dynprune::Activation::relu;
  check(what, p, dynprune::linear_tasks(p), expected, kernels.linear);
  p.streamed = true;
  p.group = 2;
  check(what + " streamed", p, dynprune::linear_tasks(p), expected, kernels.linear);
}

// The rows and columns of a master that lists name, or the first ones.
void test_master_linear(const dynprune::Kernels& kernels, const LinearShape& s, bool lists) {
  const std::string what = std::string(kernels.isa) + " master linear " + std::to_string(s.rows) + "x" +
                           std::to_string(s.depth) + "x" + std::to_string(s.units) + (s.gather ? " gathered" : "") +
                           (lists ? " lists" : "");
  std::vector<int64_t> columns, unit_rows;
  for (int64_t k = 0; k < s.depth; ++k) columns.push_back(lists || s.gather ? 2 * k : k);
  for (int64_t u = 0; u < s.units; ++u) unit_rows.push_back(lists ? 3 * u : u);
  const int64_t stride = s.depth == 0 ? 0 : columns.back() + 1, count = s.units == 0 ? 0 : unit_rows.back() + 1;
  Guarded<float> master(count * stride, 0.f), input(s.rows * s.input_stride, 0.f);
  std::ranges::copy(random_floats(count * stride), master.data());
  std::ranges::copy(random_floats(s.rows * s.input_stride), input.data());
  const std::vector<float> bias = random_floats(s.units);
  std::vector<double> expected;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t u = 0; u < s.units; ++u) {
      double sum = bias[u];
      for (int64_t k = 0; k < s.depth; ++k) {
        const int64_t from = s.gather ? columns[k] : k;
        sum += double(input[r * s.input_stride + from]) * master[unit_rows[u] * stride + columns[k]];
      }
      expected.push_back(std::max(sum, 0.0));
    }
  }
  dynprune::MasterLinearParams p{};
  p.input = input.data();
  p.input_stride = s.input_stride;
  p.input_indices = s.gather ? columns.data() : nullptr;
  p.master = master.data();
  p.master_stride = stride;
  p.unit_rows = lists ? unit_rows.data() : nullptr;
  p.columns = lists || s.gather ? columns.data() : nullptr;
  p.bias = bias.data();
  p.rows = s.rows;
  p.depth = s.depth;
  p.units = s.units;
  p.activation.kind = dynprune::Activation::relu;
  check(what, p, dynprune::master_linear_tasks(p), expected, kernels.master_linear);
}

void test_pack(const dynprune::Kernels& kernels, int64_t units, int64_t columns) {
  const std::vector<float> master = random_floats(units * columns);
  std::vector<int64_t> chosen;
  for (int64_t c = 0; c < columns; ++c) {
    if (engine() % 3 != 0) chosen.push_back(c);
  }
  pack(kernels, master, units, chosen);
}

void test_tap_sums(const dynprune::Kernels& kernels, int64_t units, int64_t channels, int64_t taps) {
  const std::vector<float> weight = random_floats(units * channels * taps), values = random_floats(channels);
  std::vector<int64_t> rows;
  for (int64_t u = 0; u < units; u += 2) rows.push_back(u);
  std::vector<double> expected(rows.size() * taps, 0.0);
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int64_t j = 0; j < channels * taps; ++j) {
      expected[i * taps + j % taps] += double(weight[rows[i] * channels * taps + j]) * values[j / taps];
    }
  }
  Guarded<double> sums(static_cast<int64_t>(expected.size()));
  dynprune::PackParams p{};
  p.master = weight.data();
  p.row_stride = channels * taps;
  p.rows = rows.data();
  p.values = values.data();
  p.sums = sums.data();
  p.units = static_cast<int64_t>(rows.size());
  p.taps = taps;
  kernels.pack(p, 0, dynprune::pack_tasks(p));
  const std::string what =
      std::string(kernels.isa) + " tap sums " + std::to_string(channels) + "x" + std::to_string(taps);
  expect(close(sums, expected) && sums.intact(), what);
}

struct ConvShape {
  const char* name;
  int64_t batch, channels, units;
  dynprune::ConvAxis h, w;
  bool channels_last, gather;
  bool depthwise = false;
};

dynprune::ConvAxis axis(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, int64_t low = 1,
                        int64_t high = 1) {
  return {in,  (in + 2 * padding - (kernel - 1) * dilation - 1) / stride + 1, kernel, stride, padding, dilation, low,
          high};
}

int64_t taps_cut(const dynprune::ConvAxis& a, int64_t o, bool low) {
  int64_t cut = 0;
  for (int64_t k = 0; k < a.kernel; ++k) {
    const int64_t i = o * a.stride - a.padding + k * a.dilation;
    cut += low ? i < 0 : i >= a.in;
  }
  return cut;
}

int64_t brute_zone(const dynprune::ConvAxis& a, int64_t o) {
  return std::min(taps_cut(a, o, true), a.zones_low - 1) * a.zones_high +
         std::min(taps_cut(a, o, false), a.zones_high - 1);
}

// As one group among others: `expected` comes between units of a neighbour, which nobody may write to.
void check_group(const std::string& what, dynprune::Conv2dParams p, const std::vector<double>& expected,
                 const dynprune::Kernels& kernels) {
  constexpr int64_t kBefore = 2, kAfter = 3;
  p.pixel_units = kBefore + p.units + kAfter;
  const int64_t pixels = p.batch * p.h.out * p.w.out;
  Guarded<float> all(pixels * p.pixel_units), own(pixels * p.units);
  p.output = all.data() + kBefore;
  kernels.conv2d(p, nullptr, 0, dynprune::conv2d_tasks(p));
  bool untouched = true;
  for (int64_t i = 0; i < pixels * p.pixel_units; ++i) {
    const int64_t unit = i % p.pixel_units - kBefore;
    if (unit >= 0 && unit < p.units) {
      own.data()[i / p.pixel_units * p.units + unit] = all[i];
    } else {
      untouched = untouched && std::isnan(all[i]);
    }
  }
  expect(close(own, expected), what + " as a group: output");
  expect(untouched && all.intact(), what + " as a group: other units");
}

// The reference of a convolution with ReLU: element k of a unit's weights is [channel][tap], or [tap] if depthwise.
std::vector<double> convolved(const ConvShape& s, const dynprune::Convolution& p, const std::vector<int64_t>& indices,
                              const std::vector<float>& input, const std::vector<float>& master,
                              const std::vector<float>& bias) {
  const int64_t taps = s.h.kernel * s.w.kernel, depth = s.depthwise ? taps : taps * s.channels;
  std::vector<double> expected;
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t pixel = 0; pixel < s.h.out * s.w.out; ++pixel) {
      const int64_t oh = pixel / s.w.out, ow = pixel % s.w.out;
      const int64_t zone = brute_zone(s.h, oh) * dynprune::zone_count(s.w) + brute_zone(s.w, ow);
      for (int64_t u = 0; u < s.units; ++u) {
        double sum = bias[zone * s.units + u];
        for (int64_t k = 0; k < depth; ++k) {
          const int64_t c = s.depthwise ? u : k / taps, kh = k % taps / s.w.kernel, kw = k % s.w.kernel;
          const int64_t ih = oh * s.h.stride - s.h.padding + kh * s.h.dilation;
          const int64_t iw = ow * s.w.stride - s.w.padding + kw * s.w.dilation;
          if (ih < 0 || ih >= s.h.in || iw < 0 || iw >= s.w.in) continue;
          const int64_t at = n * p.stride_n + indices[c] * p.stride_c + ih * p.stride_h + iw * p.stride_w;
          sum += double(input[at]) * master[u * depth + k];
        }
        expected.push_back(std::max(sum, 0.0));
      }
    }
  }
  return expected;
}

void test_conv2d(const dynprune::Kernels& kernels, const ConvShape& s) {
  const std::string what = std::string(kernels.isa) + " conv2d " + s.name;
  const int64_t all = s.gather ? 2 * s.channels : s.channels;  // channels of the input
  const int64_t taps = s.h.kernel * s.w.kernel, depth = s.depthwise ? taps : taps * s.channels;
  dynprune::Conv2dParams p{};
  p.stride_n = all * s.h.in * s.w.in;
  p.stride_c = s.channels_last ? 1 : s.h.in * s.w.in;
  p.stride_h = s.channels_last ? s.w.in * all : s.w.in;
  p.stride_w = s.channels_last ? all : 1;
  const int64_t zones = dynprune::zone_count(s.h) * dynprune::zone_count(s.w);
  const std::vector<float> input = random_floats(s.batch * p.stride_n), master = random_floats(s.units * depth);
  const std::vector<float> bias = random_floats(zones * s.units);
  std::vector<int64_t> columns, indices;  // the master is [units][channels][taps], the packed depth [taps][channels]
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < depth / taps; ++c) columns.push_back(c * taps + tap);
  }
  for (int64_t c = 0; c < s.channels; ++c) indices.push_back(s.gather ? 2 * c + 1 : c);
  const std::vector<float> weight = pack(kernels, master, s.units, columns);

  const std::vector<double> expected = convolved(s, p, indices, input, master, bias);
  p.input = input.data();
  p.input_indices = s.gather ? indices.data() : nullptr;
  p.weight = weight.data();
  p.bias = bias.data();
  p.batch = s.batch;
  p.channels = s.channels;
  p.units = s.units;
  p.pixel_units = s.units;
  p.depthwise = s.depthwise;
  p.h = s.h;
  p.w = s.w;
  p.activation.kind = dynprune::Activation::relu;
  const bool three_wide = !s.depthwise && s.w.kernel == 3 && s.w.stride == 1 && s.w.dilation == 1;
  for (int64_t threads : {1, 4, 1000}) {
    kernels.conv2d_plan(p, threads);
    expect(p.block_rows >= 1 && p.block_rows <= s.h.out, what + ": block rows");
    expect(three_wide || !p.winograd, what + ": Winograd only for kernels three columns wide");
    for (bool winograd : {false, true}) {
      if (winograd && !three_wide) continue;
      p.winograd = winograd;
      for (int64_t parts : {int64_t{1}, std::max<int64_t>(1, s.depthwise ? 1 : dynprune::panel_count(s.units))}) {
        p.unit_parts = parts;
        const std::string how = what + " in blocks of " + std::to_string(p.block_rows) + " and " +
                                std::to_string(parts) + " parts" + (winograd ? ", Winograd" : "");
        check(how, p, dynprune::conv2d_tasks(p), expected, kernels.conv2d);
      }
    }
  }
  if (zones == 1) check_group(what, p, expected, kernels);
}

// Padding, two directions, given states and first-step gates, two slices: against a step-by-step loop in float64.
void test_lstm(const dynprune::Kernels& kernels, int64_t steps, int64_t batch, int64_t depth,
               const std::vector<int64_t>& units) {
  int64_t total = 0;
  for (int64_t n : units) total += n;
  const std::vector<float> input = random_floats(steps * batch * depth), hidden = random_floats(batch * total),
                           cell = random_floats(batch * total), first = random_floats(batch * 4 * total);
  std::vector<int64_t> lengths(batch), order = counting(batch);
  for (int64_t b = 0; b < batch; ++b) lengths[b] = (b * 7 + 3) % (steps + 1);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  dynprune::LstmParams p{};
  p.input = input.data();
  p.stride_t = batch * depth;
  p.stride_b = depth;
  p.lengths = lengths.data();
  p.order = order.data();
  p.hidden = hidden.data();
  p.cell = cell.data();
  p.output_stride_t = batch * total;
  p.output_stride_b = total;
  p.steps = steps;
  p.batch = batch;
  p.depth = depth;
  p.total = total;
  p.slices = std::min<int64_t>(2, batch);
  std::vector<std::vector<float>> weights, biases;
  std::vector<double> output(steps * batch * total, 0.0), last_h(batch * total), last_c(batch * total), usage_outputs;
  std::vector<double> usage(dynprune::kUsageRows * dynprune::padded_units(total), 0.0);
  for (int64_t n : units) {
    dynprune::LstmDirection& d = p.direction[p.directions];
    d.units = n;
    d.offset = p.directions == 0 ? 0 : units[0];
    d.reverse = p.directions == 1;
    d.first = first.data() + 4 * d.offset;
    d.first_stride = 4 * total;
    ++p.directions;
    std::vector<float> master = random_floats(4 * n * (depth + n));
    for (float& w : master) w *= 0.2f;
    biases.push_back(random_floats(8 * n));
    weights.emplace_back(dynprune::lstm_panels(n) * (depth + n) * dynprune::kPanel, 0.f);
    for (int64_t row = 0; row < 4 * n; ++row) {
      const int64_t gate = row / n, unit = row % n, lane = unit % dynprune::kLstmUnits;
      for (int64_t k = 0; k < depth + n; ++k) {
        const int64_t at = (unit / dynprune::kLstmUnits * (depth + n) + k) * dynprune::kPanel;
        weights.back()[at + gate * dynprune::kLstmUnits + lane] = master[row * (depth + n) + k];
      }
    }
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<double> h(n), c(n);
      for (int64_t u = 0; u < n; ++u) {
        h[u] = hidden[b * total + d.offset + u];
        c[u] = cell[b * total + d.offset + u];
      }
      for (int64_t s = 0; s < lengths[b]; ++s) {
        const int64_t t = d.reverse ? lengths[b] - 1 - s : s;
        std::vector<double> gates(4 * n);
        for (int64_t row = 0; row < 4 * n; ++row) {
          double sum = biases.back()[(s == 0 ? 0 : 4 * n) + row] + (s == 0 ? d.first[b * d.first_stride + row] : 0.f);
          for (int64_t k = 0; k < depth; ++k)
            sum += double(master[row * (depth + n) + k]) * input[(t * batch + b) * depth + k];
          for (int64_t k = 0; k < n; ++k) sum += master[row * (depth + n) + depth + k] * h[k];
          gates[row] = sum;
        }
        auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
        for (int64_t u = 0; u < n; ++u) {
          c[u] = sigmoid(gates[n + u]) * c[u] + sigmoid(gates[u]) * std::tanh(gates[2 * n + u]);
          h[u] = sigmoid(gates[3 * n + u]) * std::tanh(c[u]);
          output[(t * batch + b) * total + d.offset + u] = h[u];
          double* at = usage.data() + d.offset + u;
          const int64_t stride = dynprune::padded_units(total);
          at[0] += std::fabs(h[u]);
          at[stride] += h[u];
          at[2 * stride] += h[u] * h[u];
          at[3 * stride] += 1;
        }
      }
      for (int64_t u = 0; u < n; ++u) {
        last_h[b * total + d.offset + u] = h[u];
        last_c[b * total + d.offset + u] = c[u];
      }
    }
  }
  for (int64_t i = 0; i < p.directions; ++i) {
    p.direction[i].weight = weights[i].data();
    p.direction[i].bias_first = biases[i].data();
    p.direction[i].bias = biases[i].data() + 4 * units[i];
  }
  Guarded<float> ours(steps * batch * total), ours_h(batch * total), ours_c(batch * total);
  Guarded<double> ours_usage(dynprune::kUsageRows * dynprune::padded_units(total), 0.0);
  p.output = ours.data();
  p.last_hidden = ours_h.data();
  p.last_cell = ours_c.data();
  const int64_t tasks = dynprune::lstm_tasks(p);
  kernels.lstm(p, ours_usage.data(), 0, tasks / 2);
  kernels.lstm(p, ours_usage.data(), tasks / 2, tasks);
  const std::string what = std::string(kernels.isa) + " lstm " + std::to_string(steps) + "x" + std::to_string(batch) +
                           "x" + std::to_string(depth) + "-" + std::to_string(total);
  expect(close(ours, output), what + ": output");
  expect(close(ours_h, last_h), what + ": last hidden states");
  expect(close(ours_c, last_c), what + ": last cell states");
  expect(close(ours_usage, usage, kUsageTolerance), what + ": usage");
  expect(ours.intact() && ours_h.intact() && ours_c.intact() && ours_usage.intact(), what + ": guard zones");
}

void test_max_pool2d(const dynprune::Kernels& kernels, int64_t channels, dynprune::PoolAxis h, dynprune::PoolAxis w) {
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

void test_axis(const dynprune::ConvAxis& a) {
  bool low = true, high = true, zone = true;
  for (int64_t o = 0; o < a.out; ++o) {
    low = low && dynprune::cut_low(a, o) == taps_cut(a, o, true);
    high = high && dynprune::cut_high(a, o) == taps_cut(a, o, false);
    zone = zone && dynprune::zone_of(a, o) == brute_zone(a, o);
  }
  const std::string what = "axis in " + std::to_string(a.in) + " kernel " + std::to_string(a.kernel) + " stride " +
                           std::to_string(a.stride) + " padding " + std::to_string(a.padding) + " dilation " +
                           std::to_string(a.dilation);
  expect(low, what + ": cut_low");
  expect(high, what + ": cut_high");
  expect(zone, what + ": zone_of");
}

void test_axes() {
  for (int64_t code = 0; code < 9 * 7 * 3 * 4 * 3; ++code) {
    const int64_t in = code % 9 + 1, kernel = code / 9 % 7 + 1, stride = code / 63 % 3 + 1;
    const int64_t padding = code / 189 % 4, dilation = code / 756 + 1;
    if (in + 2 * padding < (kernel - 1) * dilation + 1) continue;
    test_axis(axis(in, kernel, stride, padding, dilation, code % 4 + 1, code % 3 + 1));
  }
}

// The caller's rounding and denormal settings come back.
void test_settings(const dynprune::Kernels& kernels) {
#if defined(__SSE2__)
  for (unsigned setting : {_mm_getcsr() & ~0x8040u, _mm_getcsr() | 0x8040u}) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(setting);
    test_linear(kernels, {3, 4, 5, 4, false});
    expect((_mm_getcsr() & 0x8040u) == (setting & 0x8040u), std::string(kernels.isa) + " denormal setting comes back");
    _mm_setcsr(before);
  }
#else
  (void)kernels;
#endif
}

void test_select() {
  const char* error = nullptr;
  setenv("DYNPRUNE_CPU_ISA", "sse9", 1);
  expect(dynprune::select_kernels(&error) == nullptr && error != nullptr, "unknown instruction set is an error");
  error = nullptr;
  setenv("DYNPRUNE_CPU_ISA", "plain", 1);
  const dynprune::Kernels* plain = dynprune::select_kernels(&error);
  expect(plain != nullptr && std::strcmp(plain->isa, "plain") == 0 && error == nullptr, "plain can be forced");
  unsetenv("DYNPRUNE_CPU_ISA");
  expect(dynprune::select_kernels(&error) != nullptr && error == nullptr, "some kernels are always there");
}

const LinearShape kLinear[] = {
    {0, 5, 3, 5, false},     {1, 1, 1, 1, false},   {8, 33, 15, 33, false},  {63, 20, 16, 20, false},
    {64, 16, 17, 19, false}, {65, 7, 63, 7, false}, {70, 13, 64, 13, false}, {257, 9, 65, 9, false},
    {5, 30, 130, 30, false}, {3, 0, 20, 4, false},  {140, 11, 70, 24, true}, {3, 7, 0, 7, false},
};

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
}

float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Values and what becomes of them in bfloat16.
std::vector<uint16_t> rounded(std::vector<float>& values) {
  std::vector<uint16_t> halves;
  for (float& value : values) {
    halves.push_back(to_bf16(value));
    value = from_bf16(halves.back());
  }
  return halves;
}

// Packed panels [depth, width] to bfloat16: pairs of rows side by side, and behind them the last row of an odd depth.
std::vector<uint16_t> paired(const std::vector<float>& packed, int64_t units, int64_t depth) {
  std::vector<uint16_t> result;
  for (int64_t unit = 0; unit < units; unit += dynprune::kPanel) {
    const int64_t width = dynprune::padded_units(std::min(dynprune::kPanel, units - unit));
    const float* panel = packed.data() + unit * depth;
    for (int64_t k = 0; k + 1 < depth; k += 2) {
      for (int64_t j = 0; j < 2 * width; ++j) result.push_back(to_bf16(panel[(k + j % 2) * width + j / 2]));
    }
    for (int64_t j = 0; j < width && depth % 2 == 1; ++j) result.push_back(to_bf16(panel[(depth - 1) * width + j]));
  }
  return result;
}

bool has_tiles(const dynprune::Kernels& kernels) {
  return std::strcmp(kernels.isa, "amx") == 0 || std::strcmp(kernels.isa, "emulated") == 0;
}

void test_bf16(const dynprune::Kernels& kernels, const ConvShape& s) {
  if (!s.channels_last || s.gather || s.depthwise) return;  // what the kernel takes
  const std::string what = std::string(kernels.isa) + " bf16 " + s.name;
  const int64_t taps = s.h.kernel * s.w.kernel, depth = taps * s.channels;
  dynprune::Bf16Params p{};
  p.stride_c = 1;
  p.stride_w = s.channels;
  p.stride_h = s.w.in * s.channels;
  p.stride_n = s.h.in * p.stride_h;
  std::vector<float> input = random_floats(s.batch * p.stride_n), master = random_floats(s.units * depth);
  const std::vector<uint16_t> halves = rounded(input);
  rounded(master);
  const std::vector<float> bias = random_floats(dynprune::zone_count(s.h) * dynprune::zone_count(s.w) * s.units);
  std::vector<int64_t> columns, indices;
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < s.channels; ++c) columns.push_back(c * taps + tap);
  }
  for (int64_t c = 0; c < s.channels; ++c) indices.push_back(c);
  const std::vector<uint16_t> weight = paired(pack(kernels, master, s.units, columns), s.units, depth);
  const std::vector<double> expected = convolved(s, p, indices, input, master, bias);
  p.input = halves.data();
  p.weight = weight.data();
  p.bias = bias.data();
  p.batch = s.batch;
  p.channels = s.channels;
  p.units = s.units;
  p.pixel_units = s.units;
  p.h = s.h;
  p.w = s.w;
  p.activation.kind = dynprune::Activation::relu;
  const auto run = [&](const std::string& how) {
    Guarded<uint16_t> output(static_cast<int64_t>(expected.size()), 0x7fc0);
    Guarded<double> usage(dynprune::kUsageRows * dynprune::padded_units(p.units), 0.0);
    p.output = output.data();
    const int64_t tasks = dynprune::bf16_tasks(p);
    kernels.bf16(p, usage.data(), 0, tasks / 2);
    kernels.bf16(p, usage.data(), tasks / 2, tasks);
    expect(!unreleased, what + how + ": gemm_release at the end of a range");
    Guarded<float> wide(static_cast<int64_t>(expected.size()));
    for (size_t i = 0; i < expected.size(); ++i) wide.data()[i] = from_bf16(output[i]);
    expect(close(wide, expected, 5e-3), what + how + ": output");
    expect(output.intact(), what + how + ": guard zones of the output");
    expect(p.units == 0 || close(usage, usage_of(expected, p.units), 5e-3), what + how + ": usage");
    expect(usage.intact(), what + how + ": guard zones of the usage");
  };
  p.row_tile = dynprune::kRowTile;
  kernels.bf16_plan(p, 2);
  run(", as planned");
  p.block_rows = 0;
  for (int64_t tile : {int64_t{7}, dynprune::kRowTile}) {
    p.row_tile = tile;
    p.group = tile == 7 ? 3 : 1;
    run(", gathered");
  }
  if (!has_tiles(kernels) || taps == 1 || s.channels == 0) return;
  for (int64_t rows : {int64_t{1}, int64_t{3}, s.h.out}) {
    p.block_rows = rows;
    p.block_units = rows == 3 ? 2 * dynprune::kPanel : dynprune::kPanel;
    p.joined = true;
    if (s.w.dilation == 1) run(", joined");
    p.joined = false;
    const bool steps = s.h.stride == 1 && s.w.stride == 1;
    if (steps && s.w.padding <= (s.w.kernel - 1) * s.w.dilation) run(", staged");
  }
}

const ConvShape kConv2d[] = {
    {"one of each", 1, 1, 1, axis(1, 1, 1, 0, 1), axis(1, 1, 1, 0, 1), true, false},
    {"1x1", 2, 17, 65, axis(9, 1, 1, 0, 1), axis(8, 1, 1, 0, 1), true, false},
    {"1x1 nchw", 2, 5, 16, axis(5, 1, 1, 0, 1), axis(4, 1, 1, 0, 1), false, false},
    {"1x1 gathered", 2, 5, 17, axis(5, 1, 1, 0, 1), axis(4, 1, 1, 0, 1), true, true},
    {"3x3 patches", 2, 3, 15, axis(9, 3, 1, 1, 1, 2, 2), axis(11, 3, 1, 1, 1, 2, 2), true, false},
    {"3x3 rows", 2, 17, 63, axis(8, 3, 1, 1, 1, 2, 2), axis(9, 3, 1, 1, 1, 2, 2), true, false},
    {"3x3 rows nchw", 1, 9, 64, axis(7, 3, 1, 1, 1), axis(6, 3, 1, 1, 1), false, false},
    {"3x3 gathered", 1, 9, 17, axis(7, 3, 1, 1, 1), axis(6, 3, 1, 1, 1), true, true},
    {"3x3 stride 3 dilation 2", 2, 9, 20, axis(13, 3, 3, 2, 2, 3, 2), axis(12, 3, 3, 2, 2, 2, 3), true, false},
    {"3x3 long rows", 1, 9, 16, axis(3, 3, 1, 1, 1), axis(70, 3, 1, 1, 1), true, false},
    {"3x3 many blocks", 1, 17, 4, axis(44, 3, 1, 1, 1, 2, 2), axis(40, 3, 1, 1, 1, 1, 2), true, false},
    {"5x5 larger than the image", 2, 5, 17, axis(2, 5, 1, 2, 1, 3, 3), axis(3, 5, 1, 2, 1, 3, 3), true, false},
    {"7x7 stride 2", 1, 3, 16, axis(12, 7, 2, 3, 1, 4, 3), axis(13, 7, 2, 3, 1, 4, 4), false, false},
    {"2x2 padding 3", 1, 2, 130, axis(3, 2, 1, 3, 1, 3, 3), axis(3, 2, 1, 3, 1, 3, 3), true, false},
    {"3x3 without padding", 2, 13, 72, axis(9, 3, 1, 0, 1), axis(9, 3, 1, 0, 1), true, false},
    {"3x3 wide padding", 1, 16, 130, axis(5, 3, 1, 4, 1, 4, 4), axis(4, 3, 1, 5, 1, 4, 4), true, false},
    {"3x3 one column", 2, 11, 24, axis(6, 3, 1, 1, 1, 2, 2), axis(1, 3, 1, 1, 1, 2, 2), true, false},
    {"5x3 stride 2 along the height", 2, 10, 40, axis(11, 5, 2, 2, 1, 3, 3), axis(10, 3, 1, 1, 1, 2, 2), true, false},
    {"1x3 nchw", 2, 10, 17, axis(4, 1, 1, 0, 1), axis(21, 3, 1, 0, 1), false, false},
    {"3x3 dilation 3 along the height", 1, 33, 56, axis(9, 3, 1, 3, 3, 2, 2), axis(8, 3, 1, 1, 1, 1, 1), true, false},
    {"no channels", 1, 0, 17, axis(4, 3, 1, 1, 1), axis(4, 3, 1, 1, 1), true, false},
    {"depthwise 1x1", 2, 5, 5, axis(4, 1, 1, 0, 1), axis(3, 1, 1, 0, 1), true, false, true},
    {"depthwise 3x3", 2, 33, 33, axis(9, 3, 1, 1, 1, 2, 2), axis(21, 3, 1, 1, 1, 2, 2), true, false, true},
    {"depthwise 3x3 nchw", 2, 7, 7, axis(9, 3, 1, 1, 1), axis(21, 3, 1, 1, 1), false, false, true},
    {"depthwise 3x3 gathered", 1, 66, 66, axis(5, 3, 1, 1, 1), axis(6, 3, 1, 1, 1), true, true, true},
    {"depthwise 3x3 stride 2", 2, 47, 47, axis(9, 3, 2, 1, 1), axis(37, 3, 2, 1, 1), true, false, true},
    {"depthwise 3x3 dilation 2", 1, 8, 8, axis(9, 3, 1, 2, 2, 3, 2), axis(14, 3, 2, 2, 2, 2, 3), true, false, true},
    {"depthwise 3x3 many blocks", 1, 17, 17, axis(44, 3, 1, 1, 1), axis(40, 3, 1, 0, 1), true, false, true},
    {"depthwise 5x5", 1, 12, 12, axis(7, 5, 1, 2, 1, 3, 3), axis(20, 5, 1, 2, 1, 3, 3), true, false, true},
    {"depthwise 5x5 stride 2", 2, 130, 130, axis(8, 5, 2, 2, 1), axis(21, 5, 2, 2, 1), true, false, true},
    {"depthwise 5x5 larger than the image", 2, 9, 9, axis(2, 5, 1, 2, 1), axis(3, 5, 1, 2, 1), true, false, true},
    {"depthwise 1x7 stride 3", 1, 20, 20, axis(3, 1, 1, 0, 1), axis(40, 7, 3, 3, 1, 4, 4), true, false, true},
    {"depthwise 5x5 colliding", 1, 512, 512, axis(5, 5, 1, 2, 1), axis(6, 5, 1, 2, 1), true, false, true},
    {"depthwise no channels", 1, 0, 0, axis(4, 3, 1, 1, 1), axis(4, 3, 1, 1, 1), true, false, true},
};

}  // namespace

namespace dynprune::emulated {
void bf16_plan(Bf16Params&, int64_t);
void bf16_range(const Bf16Params&, double*, int64_t, int64_t);
}  // namespace dynprune::emulated

// The contract of cpu/gemm.h, to the letter: nothing beyond [m, n] is written, c is not read unless accumulating.
namespace dynprune {

void gemm_tile(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool accumulate) {
  if (m < 1 || m > kRowTile || n < 1 || n > kPanel || n % kUnitAlign != 0 || ldb < n || ldc < n) {
    expect(false, "gemm_tile: sizes within its contract");
  }
  unreleased = true;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = accumulate ? c[i * ldc + j] : 0.f;
      for (int64_t l = 0; l < k; ++l) sum += a[i * lda + l] * b[l * ldb + j];
      c[i * ldc + j] = sum;
    }
  }
}

// The kernels' own way, in float32, is what is tested here.
bool gemm_tile_bf16(int64_t, int64_t, int64_t, const uint16_t*, int64_t, const uint16_t*, float*, bool) {
  return false;
}

void gemm_release() { unreleased = false; }

}  // namespace dynprune

int main() {
  for (const char* isa : {"plain", "avx2", "avx512", "amx"}) {
    const dynprune::Kernels* kernels = dynprune::find_kernels(isa);
    if (kernels == nullptr) {
      std::printf("%s: not on this CPU\n", isa);
      continue;
    }
    const int before = passed;
    expect(std::strcmp(kernels->isa, isa) == 0, std::string(isa) + ": the table says its name");
    for (const LinearShape& shape : kLinear) {
      test_linear(*kernels, shape);
      for (bool lists : {false, true}) test_master_linear(*kernels, shape, lists);
    }
    for (int64_t columns : {1, 15, 16, 300, 517}) {
      for (int64_t units : {1, 8, 17, 64, 70}) test_pack(*kernels, units, columns);
    }
    test_tap_sums(*kernels, 5, 3, 1);
    test_tap_sums(*kernels, 3, 37, 9);
    test_tap_sums(*kernels, 1, 16, 25);
    test_lstm(*kernels, 1, 1, 1, {1});
    test_lstm(*kernels, 7, 5, 3, {17, 16});
    test_lstm(*kernels, 40, 2, 9, {33});
    test_lstm(*kernels, 3, 140, 0, {5, 20});
    for (const ConvShape& shape : kConv2d) test_conv2d(*kernels, shape);
    for (const ConvShape& shape : kConv2d) test_bf16(*kernels, shape);
    for (int64_t channels : {1, 16, 21, 33}) {
      test_max_pool2d(*kernels, channels, {7, 3, 2, 2, 0, 1}, {6, 3, 2, 2, 0, 1});
      test_max_pool2d(*kernels, channels, {5, 3, 3, 2, 1, 1}, {9, 5, 3, 1, 0, 2});
    }
    test_settings(*kernels);
    std::printf("%s: %d passed\n", isa, passed - before);
  }
  // The tiles of AMX as memory.
  dynprune::Kernels emulated = *dynprune::find_kernels("plain");
  emulated.isa = "emulated";
  emulated.bf16_plan = dynprune::emulated::bf16_plan;
  emulated.bf16 = dynprune::emulated::bf16_range;
  for (const ConvShape& shape : kConv2d) test_bf16(emulated, shape);
  expect(dynprune::find_kernels("sse9") == nullptr, "find_kernels: an unknown name has no table");
  test_axes();
  test_select();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
