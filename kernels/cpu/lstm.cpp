#include "lstm.h"

#include "kernels.h"
#include "microkernel.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// Rows (sequences times steps) of one product with the input's weights: more than a slice has, so that wide layers,
// whose weights for the input and the state L2 does not hold together, read the former once for two steps.
constexpr int64_t kInputRows = 128;
// Steps whose usage is summed in float32 before it goes to float64.
constexpr int64_t kUsageSteps = 16;

// What a task works on; buffers hold the rows of the slice in the order of p.order.
struct Slice {
  const LstmDirection* direction;
  int64_t first, stride, rows;  // row r is p.order[first + r * stride]
  int64_t width;                // units rounded up to whole panels
  float *hidden, *next;         // [rows, width]
  float* cell;                  // [rows, width]
};

int64_t length_of(const LstmParams& p, int64_t row) { return p.lengths == nullptr ? p.steps : p.lengths[row]; }

int64_t row_of(const LstmParams& p, const Slice& s, int64_t r) { return p.order[s.first + r * s.stride]; }

// Rows of the slice that still run at `step`: a prefix, the longest come first.
int64_t running(const LstmParams& p, const Slice& s, int64_t step) {
  int64_t rows = s.rows;
  while (rows > 0 && length_of(p, row_of(p, s, rows - 1)) <= step) --rows;
  return rows;
}

// Where step `step` of a direction lies in a sequence of this length.
int64_t time_of(const LstmDirection& d, int64_t length, int64_t step) { return d.reverse ? length - 1 - step : step; }

void begin_states(const LstmParams& p, const Slice& s) {
  zero(s.hidden, s.rows * s.width);
  zero(s.next, s.rows * s.width);
  zero(s.cell, s.rows * s.width);
  for (int64_t r = 0; r < s.rows; ++r) {
    const int64_t at = row_of(p, s, r) * p.total + s.direction->offset;
    if (p.hidden != nullptr) copy(s.hidden + r * s.width, p.hidden + at, s.direction->units);
    if (p.cell != nullptr) copy(s.cell + r * s.width, p.cell + at, s.direction->units);
  }
}

// States of rows [begin, end) of the slice, whose sequences are over, and zeros where their output is padding.
void end_rows(const LstmParams& p, const Slice& s, int64_t begin, int64_t end) {
  const LstmDirection& d = *s.direction;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t row = row_of(p, s, r), at = row * p.total + d.offset;
    copy(p.last_hidden + at, s.hidden + r * s.width, d.units);
    copy(p.last_cell + at, s.cell + r * s.width, d.units);
    for (int64_t t = length_of(p, row); t < p.steps; ++t) {
      zero(p.output + t * p.output_stride_t + row * p.output_stride_b + d.offset, d.units);
    }
  }
}

// Usage of one panel: sums of |h|, h, h^2.
struct PanelUsage {
  float magnitude[kLanes], total[kLanes], square[kLanes];
};

// Gates to states for one panel of one step: product_in [rows, in_stride] + product_h [rows, kPanel] + bias.
void update_panel(const LstmParams& p, const Slice& s, int64_t step, int64_t panel, int64_t rows,
                  const float* product_in, int64_t in_stride, const float* product_h, PanelUsage* usage) {
  typedef Register V;
  const LstmDirection& d = *s.direction;
  const int64_t first = panel * kLstmUnits, units = min_of(kLanes, d.units - first);
  const float* biases = (step == 0 ? d.bias_first : d.bias) + first;
  const V one = splat<V>(1.f), limit = splat<V>(20.f);
  const auto cut = [&](V v) { return select(vabs(v) > limit, select(v > splat<V>(0.f), limit, -limit), v); };
  for (int64_t u = 0; u < units; u += kRegisterLanes) {
    const int64_t lanes = min_of(kRegisterLanes, units - u);
    V bias[4];
    for (int gate = 0; gate < 4; ++gate) bias[gate] = load_part<V>(biases + gate * d.units + u, lanes);
    V magnitude{}, total{}, square{};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = row_of(p, s, r), unit = first + u;
      const float* in = product_in + r * in_stride + u;
      const float* recurrent = product_h + r * kPanel + u;
      V gates[4];
#pragma GCC unroll 4
      for (int gate = 0; gate < 4; ++gate) {
        gates[gate] = load<V>(in + gate * kLanes) + load<V>(recurrent + gate * kLanes) + bias[gate];
      }
      if (step == 0 && d.first != nullptr) {
        const float* more = d.first + row * d.first_stride + unit;
#pragma GCC unroll 4
        for (int gate = 0; gate < 4; ++gate) gates[gate] += load_part<V>(more + gate * d.units, lanes);
      }
      const auto [i, f, g, o] = gates;
      // sigmoid(i) * tanh(g) and sigmoid(o) * tanh(c) take one division each; tanh is 1 long before its argument is 20.
      const V eg = vexp(cut(g) * splat<V>(2.f));
      const V added = (eg - one) / ((eg + one) * (one + vexp(-i)));
      float* cell = s.cell + r * s.width + unit;
      const V c = load<V>(cell) / (one + vexp(-f)) + added;
      const V ec = vexp(cut(c) * splat<V>(2.f));
      const V h = (ec - one) / ((ec + one) * (one + vexp(-o)));
      store(cell, c);
      store(s.next + r * s.width + unit, h);
      const int64_t t = time_of(d, length_of(p, row), step);
      float* to = p.output + t * p.output_stride_t + row * p.output_stride_b + d.offset + unit;
      if (lanes == kRegisterLanes) {
        store(to, h);
      } else {
        store_part(to, h, lanes);
      }
      if (usage == nullptr) continue;
      magnitude += vabs(h);
      total += h;
      square += h * h;
    }
    if (usage == nullptr) continue;
    // NaN and infinity never enter; they are left out of the count by the caller's own test of the sums.
    store(usage->magnitude + u, load<V>(usage->magnitude + u) + magnitude);
    store(usage->total + u, load<V>(usage->total + u) + total);
    store(usage->square + u, load<V>(usage->square + u) + square);
  }
}

// Adds what some steps summed to usage [kUsageRows, stride] at the direction's first unit, and empties it.
void flush_usage(const LstmDirection& d, PanelUsage* sums, double steps_and_rows, double* usage, int64_t stride) {
  for (int64_t u = 0; u < d.units; ++u) {
    const PanelUsage& s = sums[u / kLstmUnits];
    const int64_t lane = u % kLstmUnits;
    const double square = s.square[lane];
    if (!(square < __builtin_huge_val())) continue;  // NaN or infinity in these steps
    usage[u] += s.magnitude[lane];
    usage[stride + u] += s.total[lane];
    usage[2 * stride + u] += square;
    usage[3 * stride + u] += steps_and_rows;
  }
  for (int64_t panel = 0; panel < lstm_panels(d.units); ++panel) sums[panel] = PanelUsage{};
}

void run_slice(const LstmParams& p, int64_t task, double* usage) {
  Slice s{};
  s.direction = &p.direction[task / p.slices];
  s.first = task % p.slices;
  s.stride = p.slices;
  s.rows = (p.batch - s.first + p.slices - 1) / p.slices;
  const LstmDirection& d = *s.direction;
  const int64_t panels = lstm_panels(d.units), weight_panel = (p.depth + d.units) * kPanel;
  s.width = panels * kLstmUnits;
  s.hidden = scratch(0, s.rows * s.width);
  s.next = scratch(1, s.rows * s.width);
  s.cell = scratch(2, s.rows * s.width);
  const int64_t chunk = max_of(1, kInputRows / max_of(1, s.rows));  // steps
  float* staged = scratch(3, chunk * s.rows * p.depth + kLanes);
  float* product_in = scratch(4, chunk * s.rows * panels * kPanel);
  float* product_h = scratch(5, s.rows * kPanel);
  PanelUsage* sums = nullptr;
  if (usage != nullptr) {
    sums = reinterpret_cast<PanelUsage*>(scratch(6, panels * static_cast<int64_t>(sizeof(PanelUsage) / sizeof(float))));
    for (int64_t panel = 0; panel < panels; ++panel) sums[panel] = PanelUsage{};
  }
  double counted = 0;
  begin_states(p, s);
  int64_t rows = running(p, s, 0);
  end_rows(p, s, rows, s.rows);
  for (int64_t begin = 0; rows > 0; begin += chunk) {
    // The input of the next steps, in the order of the slice: one product for all of them.
    const int64_t end = min_of(begin + chunk, p.steps);
    int64_t staged_rows = 0;
    for (int64_t step = begin; step < end; ++step) {
      const int64_t here = running(p, s, step);
      for (int64_t r = 0; r < here; ++r, ++staged_rows) {
        const int64_t row = row_of(p, s, r), t = time_of(d, length_of(p, row), step);
        copy(staged + staged_rows * p.depth, p.input + t * p.stride_t + row * p.stride_b, p.depth);
      }
    }
    Taps taps{staged, p.depth, 0, 0, 1, 1, p.depth};
    for (int64_t panel = 0; panel < panels; ++panel) {
      multiply_run(staged_rows, taps, d.weight + panel * weight_panel, kPanel, product_in + panel * kPanel,
                   panels * kPanel);
    }
    const float* from = product_in;
    for (int64_t step = begin; step < end && rows > 0; ++step) {
      const bool from_zero = step == 0 && p.hidden == nullptr;
      taps = {s.hidden, s.width, 0, 0, 1, 1, d.units};
      for (int64_t panel = 0; panel < panels; ++panel) {
        if (from_zero) {
          zero(product_h, rows * kPanel);
        } else {
          multiply_run(rows, taps, d.weight + panel * weight_panel + p.depth * kPanel, kPanel, product_h, kPanel);
        }
        update_panel(p, s, step, panel, rows, from + panel * kPanel, panels * kPanel, product_h,
                     sums == nullptr ? nullptr : sums + panel);
      }
      from += rows * panels * kPanel;
      counted += static_cast<double>(rows);
      float* const swapped = s.hidden;
      s.hidden = s.next;
      s.next = swapped;
      const int64_t left = step + 1 < p.steps ? running(p, s, step + 1) : 0;
      end_rows(p, s, left, rows);
      rows = left;
      if (sums != nullptr && (rows == 0 || (step + 1) % kUsageSteps == 0)) {
        flush_usage(d, sums, counted, usage + d.offset, padded_units(p.total));
        counted = 0;
      }
    }
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(total)] of this range, added to; nullptr: not wanted.
void lstm_range(const LstmParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  for (int64_t task = begin; task < end; ++task) run_slice(p, task, usage);
}

}  // namespace dynprune::DYNPRUNE_ISA
