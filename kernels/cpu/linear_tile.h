// What the kernels of linear layers do with a tile of products.
#pragma once

#include "epilogue.h"
#include "linear.h"

namespace dynprune::DYNPRUNE_ISA {

// Bias, activation, usage and output of rows [row, row + rows) and the units [unit, unit + units) of one panel. usage:
// [kUsageRows, padded_units(p.units)], added to; nullptr: not wanted.
inline void finish_linear(const LinearParams& p, int64_t row, int64_t rows, int64_t unit, int64_t units,
                          const float* product, int64_t product_stride, double* usage) {
  EpilogueTile t{};
  t.product = product;
  t.product_stride = product_stride;
  t.rows = rows;
  t.units = units;
  t.bias = p.bias == nullptr ? nullptr : p.bias + unit;
  t.output = p.output + row * p.units + unit;
  t.output_stride = p.units;
  t.usage = usage == nullptr ? nullptr : usage + unit;
  t.usage_stride = padded_units(p.units);
  epilogue(t, p.activation);
}

}  // namespace dynprune::DYNPRUNE_ISA
