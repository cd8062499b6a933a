#include "sparse_input.h"

#include "epilogue.h"
#include "kernels.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// How many picked inputs ahead their weights are fetched into L2: they are too far apart for the hardware to guess.
constexpr int64_t kAhead = 24;

// product[kRows, kPanel] columns [0, kVectors * 16) over the picked inputs; the last of them may be half a vector.
template <int kRows, int kVectors>
void multiply_picked(const SparseInputParams& p, const float* input, const float* panel, int64_t width,
                     float* product) {
  Floats sum[kRows][kVectors] = {};
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t k = p.picked[i];
    const float* w = panel + k * width;
    if (i + kAhead < p.count) {
      const float* next = panel + p.picked[i + kAhead] * width;
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(next + v * kLanes, 0, 2);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Floats weights = load(w + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r][v] += splat(input[r * p.input_stride + k]) * weights;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) store(product + r * kPanel + v * kLanes, sum[r][v]);
  }
}

template <int kRows>
void multiply_rows(const SparseInputParams& p, const float* input, const float* panel, int64_t width, float* product) {
  switch ((width + kLanes - 1) / kLanes) {
    case 1: return multiply_picked<kRows, 1>(p, input, panel, width, product);
    case 2: return multiply_picked<kRows, 2>(p, input, panel, width, product);
    case 3: return multiply_picked<kRows, 3>(p, input, panel, width, product);
    default: return multiply_picked<kRows, 4>(p, input, panel, width, product);
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void sparse_input_range(const SparseInputParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  float* product = scratch(0, kSparseRows * kPanel);
  float* tail = scratch(1, p.depth * kPanel);
  for (int64_t task = begin; task < end; ++task) {
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
      multiply_rows<4>(p, p.input + r * p.input_stride, panel, stride, product + r * kPanel);
    }
    for (; r < p.rows; ++r) {
      multiply_rows<1>(p, p.input + r * p.input_stride, panel, stride, product + r * kPanel);
    }
    EpilogueTile t{};
    t.product = product;
    t.product_stride = kPanel;
    t.rows = p.rows;
    t.units = units;
    t.bias = p.bias == nullptr ? nullptr : p.bias + unit;
    t.output = p.output + unit;
    t.output_stride = p.units;
    t.usage = usage == nullptr ? nullptr : usage + unit;
    t.usage_stride = padded_units(p.units);
    epilogue(t, p.activation);
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
