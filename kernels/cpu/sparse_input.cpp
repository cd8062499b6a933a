#include "sparse_input.h"

#include "kernels.h"
#include "linear_tile.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// How many picked inputs ahead their weights are fetched into L2: they are too far apart for the hardware to guess.
constexpr int64_t kAhead = 32;
// Panels that one row takes at once: more of their weights are on the way at any time. More still where few inputs are
// needed, as far as there are registers for the sums.
constexpr int64_t kPanelsAtOnce = 2, kMostPanels = kRegisterLanes == kLanes ? 4 : 2;

// product[kRows, kPanels * kPanel] over the picked inputs, of each panel the columns [0, kVectors * 16), the last of
// which may be half a vector. One panel lies `next` behind the other.
template <int kRows, int kPanels, int kVectors>
void multiply_picked(const SparseInputParams& p, const float* input, const float* panel, int64_t width, int64_t next,
                     float* product) {
  Floats sum[kPanels][kRows][kVectors] = {};
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t k = p.picked[i];
    if (i + kAhead < p.count) {
      const float* ahead = panel + p.picked[i + kAhead] * width;
      for (int q = 0; q < kPanels; ++q) {
        for (int v = 0; v < kVectors; ++v) __builtin_prefetch(ahead + q * next + v * kLanes, 0, 2);
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < kPanels; ++q) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Floats weights = load(panel + q * next + k * width + v * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[q][r][v] += splat(input[r * p.input_stride + k]) * weights;
      }
    }
  }
  for (int q = 0; q < kPanels; ++q) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        store(product + (r * kMostPanels + q) * kPanel + v * kLanes, sum[q][r][v]);
      }
    }
  }
}

template <int kRows>
void multiply_rows(const SparseInputParams& p, const float* input, const float* panel, int64_t width, float* product) {
  switch ((width + kLanes - 1) / kLanes) {
    case 1: return multiply_picked<kRows, 1, 1>(p, input, panel, width, 0, product);
    case 2: return multiply_picked<kRows, 1, 2>(p, input, panel, width, 0, product);
    case 3: return multiply_picked<kRows, 1, 3>(p, input, panel, width, 0, product);
    default: return multiply_picked<kRows, 1, 4>(p, input, panel, width, 0, product);
  }
}

// Bias, activation, usage and output of the units [unit, end), whose products stand side by side.
void finish(const SparseInputParams& p, const float* product, int64_t stride, int64_t unit, int64_t end,
            double* usage) {
  for (; unit < end; unit += kPanel, product += kPanel) {
    finish_linear(p, 0, p.rows, unit, min_of(kPanel, end - unit), product, stride, usage);
  }
}

// Several whole panels for one row; returns whether that many are left.
template <int64_t kPanels>
bool take_panels(const SparseInputParams& p, int64_t task, int64_t end, float* product, double* usage) {
  const int64_t unit = task * kPanel, last = unit + kPanels * kPanel;
  if (task + kPanels > end || last > p.units) return false;
  const float* panel = p.weight + unit * p.depth;
  multiply_picked<1, kPanels, kPanel / kLanes>(p, p.input, panel, kPanel, kPanel * p.depth, product);
  finish(p, product, kMostPanels * kPanel, unit, last, usage);
  return true;
}

void panels_range(const SparseInputParams& p, double* usage, int64_t begin, int64_t end) {
  constexpr int64_t kStride = kMostPanels * kPanel;
  float* product = scratch(0, kSparseRows * kStride);
  float* tail = scratch(1, p.depth * kPanel);
  const bool few = 8 * p.count <= 3 * p.depth;
  for (int64_t task = begin; task < end; ++task) {
    if (p.rows == 1 && few && take_panels<kMostPanels>(p, task, end, product, usage)) {
      task += kMostPanels - 1;
      continue;
    }
    if (p.rows == 1 && take_panels<kPanelsAtOnce>(p, task, end, product, usage)) {
      task += kPanelsAtOnce - 1;
      continue;
    }
    const int64_t unit = task * kPanel, units = min_of(kPanel, p.units - unit), width = padded_units(units);
    const float* panel = p.weight + unit * p.depth;
    int64_t stride = width;
    if (width % kLanes != 0) {
      // Whole vectors would read past the end of a panel that ends on half a one: the picked rows, widened.
      stride = (width + kLanes - 1) / kLanes * kLanes;
      for (int64_t i = 0; i < p.count; ++i) {
        const int64_t k = p.picked[i];
        int64_t j = 0;
        for (; j + kLanes <= width; j += kLanes) store(tail + k * stride + j, load(panel + k * width + j));
        store(tail + k * stride + j, load_part(panel + k * width + j, width - j));
      }
      panel = tail;
    }
    int64_t r = 0;
    for (; r + 4 <= p.rows; r += 4) {
      multiply_rows<4>(p, p.input + r * p.input_stride, panel, stride, product + r * kStride);
    }
    for (; r < p.rows; ++r) {
      multiply_rows<1>(p, p.input + r * p.input_stride, panel, stride, product + r * kStride);
    }
    finish(p, product, kStride, unit, unit + units, usage);
  }
}

// Inputs whose weights are read side by side: long runs from several places keep memory busier than one after another.
constexpr int64_t kStreams = 8;
// Units whose sums stay in the cache while the inputs go by, and how many units ahead weights are fetched.
constexpr int64_t kRun = 4096, kRunAhead = 256;

// product[kRows, kRun] += the inputs picked[0, kInputs) times their weights for `columns` units; the first weights of
// the inputs behind them, up to `count`, are fetched at the end.
template <int kRows, int kInputs>
void add_inputs(const SparseInputParams& p, const float* input, const int64_t* picked, int64_t count,
                const float* weight, int64_t columns, float* product) {
  const int64_t stride = input_major_units(p.units);
  const float *from[kInputs], *next[kInputs];
  Floats x[kRows][kInputs];
  for (int i = 0; i < kInputs; ++i) {
    from[i] = weight + picked[i] * stride;
    next[i] = weight + picked[min_of(kInputs + i, count - 1)] * stride;
    for (int r = 0; r < kRows; ++r) x[r][i] = splat(input[r * p.input_stride + picked[i]]);
  }
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int64_t ahead = j + kRunAhead;
    Floats sum[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sum[r] = load(product + r * kRun + j);
#pragma GCC unroll 8
    for (int i = 0; i < kInputs; ++i) {
      const Floats weights = load(from[i] + j);
      __builtin_prefetch(ahead < columns ? from[i] + ahead : next[i] + (ahead - columns), 0, 2);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r] += x[r][i] * weights;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) store(product + r * kRun + j, sum[r]);
  }
}

template <int kInputs>
void add_to_rows(const SparseInputParams& p, int64_t first, const float* weight, int64_t columns, float* product) {
  const int64_t* picked = p.picked + first;
  const int64_t count = p.count - first;
  int64_t r = 0;
  for (; r + 4 <= p.rows; r += 4) {
    add_inputs<4, kInputs>(p, p.input + r * p.input_stride, picked, count, weight, columns, product + r * kRun);
  }
  for (; r < p.rows; ++r) {
    add_inputs<1, kInputs>(p, p.input + r * p.input_stride, picked, count, weight, columns, product + r * kRun);
  }
}

void input_major_range(const SparseInputParams& p, double* usage, int64_t begin, int64_t end) {
  float* product = scratch(0, kSparseRows * kRun);
  const int64_t last = min_of(end * kPanel, p.units);
  for (int64_t unit = begin * kPanel; unit < last; unit += kRun) {
    const int64_t units = min_of(kRun, last - unit), columns = input_major_units(units);
    const float* weight = p.input_major + unit;
    zero(product, p.rows * kRun);
    int64_t i = 0;
    for (; i + kStreams <= p.count; i += kStreams) add_to_rows<kStreams>(p, i, weight, columns, product);
    for (; i < p.count; ++i) add_to_rows<1>(p, i, weight, columns, product);
    finish(p, product, kRun, unit, unit + units, usage);
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void sparse_input_range(const SparseInputParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  p.input_major != nullptr ? input_major_range(p, usage, begin, end) : panels_range(p, usage, begin, end);
}

}  // namespace dynprune::DYNPRUNE_ISA
