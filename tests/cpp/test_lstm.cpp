#include "check.h"

namespace {

// Padding, two directions, given states and first-step gates, two slices: against a step-by-step loop in float64.
void test_layer(const dynprune::Kernels& kernels, int64_t steps, int64_t batch, int64_t depth,
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

}  // namespace

void test_lstm(const dynprune::Kernels& kernels) {
  test_layer(kernels, 1, 1, 1, {1});
  test_layer(kernels, 7, 5, 3, {17, 16});
  test_layer(kernels, 40, 2, 9, {33});
  test_layer(kernels, 3, 140, 0, {5, 20});
}
