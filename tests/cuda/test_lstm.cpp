#include "check.h"
#include "cuda/lstm.h"

namespace {

using namespace check;
using namespace dynprune;
using namespace dynprune::cuda;

struct Case {
  const char* name;
  Number number;
  int64_t steps, batch;
  std::vector<int64_t> units;    // of each direction
  std::vector<int64_t> lengths;  // none: all steps
  bool states = false, first = false, batch_first = false;
  int multiprocessors = 100;  // few: a launch for each step
  int unit_count = -1;        // of each direction, in device memory
};

const Case kCases[] = {
    {"one of each", Number::f32, 1, 1, {1}, {}},
    {"no steps", Number::f32, 0, 3, {5}, {}, true},
    {"one block", Number::bf16, 4, 3, {13}, {}},
    {"three blocks wait for one another", Number::bf16, 4, 5, {41}, {}},
    {"two directions, lengths", Number::f32, 5, 4, {18, 7}, {5, 0, 3, 1}, true, true},
    {"two row tiles", Number::f16, 3, 20, {20}, {}, true},
    {"two slabs", Number::bf16, 3, 2, {70}, {}, true, false, true},
    {"tf32, batch first", Number::tf32, 3, 6, {24, 24}, {3, 3, 2, 1, 2, 0}, false, true, true},
    {"small tile", Number::bf16, 3, 40, {20}, {}, true, false, false, 2},
    {"counts", Number::bf16, 3, 3, {40, 40}, {3, 2, 3}, false, false, false, 100, 21},
    {"step by step", Number::f32, 4, 5, {19, 33}, {4, 1, 0, 3, 4}, true, true, false, 1},
    {"step by step, no steps", Number::bf16, 0, 3, {5}, {}, true, false, false, 0},
    {"step by step, two row tiles, two slabs", Number::bf16, 2, 66, {70}, {}, true, false, false, 1},
    {"products given", Number::f32, 4, 5, {19, 33}, {4, 1, 0, 3, 4}, true, true, false, 1},
    {"products given, no steps", Number::bf16, 0, 3, {5}, {}, true, false, false, 0},
    {"products given, no states, two row tiles", Number::bf16, 3, 20, {18}, {}, false, false, true, 0},
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Layer {
  Operand hidden, cell, output, last_hidden, last_cell;
  std::vector<Operand> weights;
  std::vector<std::vector<float>> gates, biases, firsts;
};

// What a library does in front of a step: the states that it reads, multiplied with the recurrent weights.
std::vector<float> multiplied(const Layer& l, const LstmParams& p, const LstmPlan& plan, int64_t step, int64_t d) {
  const LstmDirection& own = p.direction[d];
  std::vector<float> product(p.batch * 4 * own.units);
  Operand states(p.number, p.batch * plan.state_stride);
  if (step > 0) std::memcpy(states.data(), lstm_state(p, plan, step, d), states.bytes.size());
  for (int64_t row = 0; row < p.batch; ++row) {
    for (int64_t i = 0; i < 4 * own.units; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < own.units; ++k) {
        const double h =
            step > 0 ? states.get(row * plan.state_stride + k) : l.hidden.values[row * p.total + own.offset + k];
        sum += h * l.weights[d].values[i * own.weight_stride + k];
      }
      product[row * 4 * own.units + i] = static_cast<float>(sum);
    }
  }
  return product;
}

Status run_given(const Layer& l, LstmParams& p, const LstmPlan& plan) {
  for (int64_t step = 0; step < std::max<int64_t>(1, p.steps); ++step) {
    std::vector<float> products[kMostDirections];
    for (int64_t d = 0; d < p.directions && (step > 0 || p.hidden != nullptr); ++d) {
      products[d] = multiplied(l, p, plan, step, d);
      p.direction[d].product = products[d].data();
    }
    const Status status = lstm_step(p, plan, step, nullptr);
    if (status != 0) return status;
  }
  return lstm_end(p, plan, nullptr);
}

void run(const Case& c, const std::string& order) {
  const std::string what = "lstm " + order + ", " + name(c.number) + ", " + c.name;
  int64_t total = 0;
  for (int64_t units : c.units) total += units;
  Layer l{random_matrix(c.number, c.batch, total, total, 0.5),
          random_matrix(c.number, c.batch, total, total, 0.5),
          Operand(c.number, c.steps * c.batch * total),
          Operand(c.number, c.batch * total),
          Operand(c.number, c.batch * total),
          {},
          {},
          {},
          {}};
  std::vector<double> usage(4 * total, 0.0), output(c.steps * c.batch * total, 0.0), expected_usage(4 * total, 0.0);
  std::vector<double> last_hidden(c.batch * total), last_cell(c.batch * total);
  LstmParams p{};
  p.number = c.number;
  p.lengths = c.lengths.empty() ? nullptr : c.lengths.data();
  p.hidden = c.states ? l.hidden.data() : nullptr;
  p.cell = c.states ? l.cell.data() : nullptr;
  p.output = l.output.data();
  p.output_stride_t = c.batch_first ? total : c.batch * total;
  p.output_stride_b = c.batch_first ? c.steps * total : total;
  p.last_hidden = l.last_hidden.data();
  p.last_cell = l.last_cell.data();
  p.steps = c.steps;
  p.batch = c.batch;
  p.total = total;
  p.directions = static_cast<int64_t>(c.units.size());
  p.gates_stride_t = (c.batch_first ? 1 : c.batch) * 4 * total;
  p.gates_stride_b = (c.batch_first ? c.steps : 1) * 4 * total;
  p.usage = usage.data();
  p.usage_stride = total;
  const int unit_count = c.unit_count;
  const std::vector<float> gates = random_floats(c.steps * c.batch * 4 * total);
  int64_t offset = 0;
  for (int64_t d = 0; d < p.directions; ++d) {
    const int64_t units = c.units[d], stride = padded_depth(units, c.number);
    l.weights.push_back(random_matrix(c.number, 4 * units, units, stride, 1 / std::sqrt(static_cast<double>(units))));
    l.biases.push_back(random_floats(8 * units));
    l.firsts.push_back(random_floats(c.batch * 4 * units));
    LstmDirection& own = p.direction[d];
    own.weight = l.weights[d].data();
    own.weight_stride = stride;
    own.gates = gates.data() + 4 * offset;
    own.bias_first = l.biases[d].data();
    own.bias = own.bias_first + 4 * units;
    own.first = c.first ? l.firsts[d].data() : nullptr;
    own.first_stride = 4 * units;
    own.units = units;
    own.offset = offset;
    own.unit_count = c.unit_count < 0 ? nullptr : &unit_count;
    own.reverse = d == 1;
    offset += units;
  }
  const bool given = what.find("products given") != std::string::npos;
  const LstmPlan plan = given ? lstm_step_plan(p) : lstm_plan(p, c.multiprocessors, 200 * 1024);
  const bool by_step = given || what.find("step by step") != std::string::npos;
  expect(plan.persistent != by_step, what + ": is persistent, or not");
  std::vector<char> workspace(plan.workspace(), static_cast<char>(0xff));
  std::fill_n(workspace.begin(), plan.counter_bytes, 0);
  p.workspace = workspace.data();
  const int status = given ? run_given(l, p, plan) : lstm(p, plan, nullptr);
  expect(status == 0, what + ": " + emulation::error());
  if (status != 0) return;

  auto counted = [&](int64_t d) { return c.unit_count < 0 ? c.units[d] : c.unit_count; };
  for (int64_t d = 0; d < p.directions; ++d) {
    const LstmDirection& own = p.direction[d];
    const int64_t units = counted(d);
    for (int64_t row = 0; row < c.batch; ++row) {
      std::vector<double> h(units, 0.0), cell(units, 0.0);
      for (int64_t u = 0; u < units && c.states; ++u) {
        h[u] = l.hidden.values[row * total + own.offset + u];
        cell[u] = l.cell.values[row * total + own.offset + u];
      }
      const int64_t length = c.lengths.empty() ? c.steps : c.lengths[row];
      for (int64_t step = 0; step < length; ++step) {
        const int64_t t = own.reverse ? length - 1 - step : step;
        std::vector<double> next(units);
        for (int64_t u = 0; u < units; ++u) {
          double gate[4];
          for (int64_t g = 0; g < 4; ++g) {
            gate[g] = own.gates[t * p.gates_stride_t + row * p.gates_stride_b + 4 * u + g];
            gate[g] += (step == 0 ? own.bias_first : own.bias)[g * own.units + u];
            if (step == 0 && c.first) gate[g] += own.first[row * own.first_stride + g * own.units + u];
            for (int64_t k = 0; k < units; ++k)
              gate[g] += h[k] * l.weights[d].values[(4 * u + g) * own.weight_stride + k];
          }
          cell[u] = sigmoid(gate[1]) * cell[u] + sigmoid(gate[0]) * std::tanh(gate[2]);
          next[u] = sigmoid(gate[3]) * std::tanh(cell[u]);
          output[t * p.output_stride_t + row * p.output_stride_b + own.offset + u] = next[u];
          double* to = expected_usage.data() + own.offset + u;
          to[0] += std::fabs(next[u]);
          to[total] += next[u];
          to[2 * total] += next[u] * next[u];
          to[3 * total] += 1;
        }
        h = next;
      }
      for (int64_t u = 0; u < units; ++u) {
        last_hidden[row * total + own.offset + u] = h[u];
        last_cell[row * total + own.offset + u] = cell[u];
      }
    }
  }
  // Of units beyond the count nothing is written.
  auto compare = [&](const Operand& actual, const std::vector<double>& expected, const char* which) {
    std::vector<double> found, wanted;
    bool untouched = true;
    for (int64_t i = 0; i < actual.size(); ++i) {
      const int64_t unit = i % total, d = p.directions > 1 && unit >= p.direction[1].offset;
      if (unit - p.direction[d].offset < counted(d)) {
        found.push_back(actual.get(i));
        wanted.push_back(expected[i]);
      } else {
        untouched = untouched && std::isnan(actual.get(i));
      }
    }
    expect(close(found, wanted, 2 * tolerance(c.number)) && untouched, what + ": " + which);
  };
  compare(l.output, output, "output");
  compare(l.last_hidden, last_hidden, "last hidden state");
  compare(l.last_cell, last_cell, "last cell state");
  expect(close(usage, expected_usage, 2 * tolerance(c.number)), what + ": usage");
  bool clean = true;
  for (int64_t i = 0; i < plan.counter_bytes; ++i) clean = clean && workspace[i] == 0;
  expect(clean, what + ": the counters are left zero");
}

}  // namespace

void test_lstm() {
  for (const Orders& order : kOrders) {
    emulation::set_order(order.order, 19);
    for (const Case& c : kCases) run(c, order.name);
  }
}
