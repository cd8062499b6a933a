// The product's roles change places: the input is what is arranged in panels, row beside row, and the weights are what
// is broadcast, one at a time. So those that are left out are passed over without a copy of the others.
#include "master_linear.h"

#include "kernels.h"
#include "linear_tile.h"
#include "microkernel.h"
#include "scratch.h"
#include "transpose.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// The input of a tile, transposed: [depth][width], zeros behind its rows.
struct Columns {
  float* values;
  int64_t width;  // a multiple of kLanes
};

// product[kUnits, kVectors registers] = rows of the master times columns of the input. The hardware fetches the rows
// ahead, better than this code could.
template <int kUnits, int kVectors>
void multiply_units(const float* const* rows, const int32_t* columns, int64_t depth, const float* input, int64_t width,
                    float* product) {
  Register sum[kUnits][kVectors] = {};
  const float* row[kUnits];
  for (int u = 0; u < kUnits; ++u) row[u] = rows[u];
  for (int64_t k = 0; k < depth; ++k, input += width) {
    const int64_t column = columns[k];
    Register x[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Register value = load<Register>(input + v * kRegisterLanes);
      keep_in_register(value);
      x[v] = value;
    }
#pragma GCC unroll 16
    for (int u = 0; u < kUnits; ++u) {
      const Register weight = row[u][column] - Register{};
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[u][v] += weight * x[v];
    }
  }
#pragma GCC unroll 16
  for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(product + u * kRowTile + v * kRegisterLanes, sum[u][v]);
  }
}

template <int kUnits, int kVectors>
void multiply_rest(int64_t count, const float* const* rows, const int32_t* columns, int64_t depth, const float* input,
                   int64_t width, float* product) {
  if (count == kUnits) return multiply_units<kUnits, kVectors>(rows, columns, depth, input, width, product);
  if constexpr (kUnits > 1) multiply_rest<kUnits - 1, kVectors>(count, rows, columns, depth, input, width, product);
}

template <int kVectors>
void multiply_vectors(int64_t vectors, int64_t count, const float* const* rows, const int32_t* columns, int64_t depth,
                      const float* input, int64_t width, float* product) {
  if (vectors == kVectors) {
    return multiply_rest<pixels_of(kVectors), kVectors>(count, rows, columns, depth, input, width, product);
  }
  if constexpr (kVectors > 1) {
    multiply_vectors<kVectors - 1>(vectors, count, rows, columns, depth, input, width, product);
  }
}

// product[kPanel, kRowTile] of a panel's units.
void multiply_panel(const MasterLinearParams& p, const int32_t* columns, int64_t unit, int64_t count,
                    const Columns& input, float* product) {
  const int64_t registers = min_of(kGroup, input.width / kRegisterLanes), most = pixels_of(static_cast<int>(registers));
  int64_t blocks = (count + most - 1) / most;
  for (int64_t u = 0; u < count; --blocks) {
    const int64_t some = (count - u + blocks - 1) / blocks;
    const float* rows[kMostPixels];
    for (int64_t i = 0; i < some; ++i) {
      const int64_t index = p.unit_rows == nullptr ? unit + u + i : p.unit_rows[unit + u + i];
      rows[i] = p.master + index * p.master_stride;
    }
    for (int64_t r = 0; r < input.width; r += registers * kRegisterLanes) {
      const int64_t vectors = min_of(registers, (input.width - r) / kRegisterLanes);
      multiply_vectors<kGroup>(vectors, some, rows, columns, p.depth, input.values + r, input.width,
                               product + u * kRowTile + r);
    }
    u += some;
  }
}

void transpose_input(const MasterLinearParams& p, int64_t first, int64_t rows, const Columns& to) {
  for (int64_t r = 0; r < to.width; r += kLanes) {
    for (int64_t k = 0; k < p.depth; k += kLanes) {
      const int64_t lanes = min_of(kLanes, p.depth - k);
      Floats v[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* from = p.input + (first + r + i) * p.input_stride;
        if (r + i >= rows) {
          v[i] = Floats{};
        } else if (p.input_indices == nullptr) {
          v[i] = lanes == kLanes ? load(from + k) : load_part(from + k, lanes);
        } else {
          float picked[kLanes] = {};
          for (int64_t j = 0; j < lanes; ++j) picked[j] = from[p.input_indices[k + j]];
          v[i] = load(picked);
        }
      }
      transpose(v);
      for (int64_t j = 0; j < lanes; ++j) store(to.values + (k + j) * to.width + r, v[j]);
    }
  }
}

// product[rows, kPanel] of the transposed one.
void transpose_product(int64_t rows, int64_t units, const float* from, float* to) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    for (int64_t u = 0; u < units; u += kLanes) {
      Floats v[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) v[i] = load(from + (u + i) * kRowTile + r);
      transpose(v);
      for (int64_t i = 0; i < min_of(kLanes, rows - r); ++i) store(to + (r + i) * kPanel + u, v[i]);
    }
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void master_linear_range(const MasterLinearParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  const int64_t panels = panel_count(p.units);
  float* transposed = scratch(0, kPanel * kRowTile);
  float* product = scratch(1, kRowTile * kPanel);
  float* input = scratch(2, p.depth * kRowTile);
  int32_t* columns = reinterpret_cast<int32_t*>(scratch(3, p.depth));
  for (int64_t k = 0; k < p.depth; ++k) columns[k] = static_cast<int32_t>(p.columns == nullptr ? k : p.columns[k]);
  int64_t arranged = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / panels, unit = task % panels * kPanel;
    const int64_t row = tile * kRowTile, rows = min_of(kRowTile, p.rows - row), units = min_of(kPanel, p.units - unit);
    const Columns tile_input{input, (rows + kLanes - 1) / kLanes * kLanes};
    if (arranged != tile) transpose_input(p, row, rows, tile_input);
    arranged = tile;
    multiply_panel(p, columns, unit, units, tile_input, transposed);
    transpose_product(rows, units, transposed, product);
    finish_linear(p, row, rows, unit, units, product, kPanel, usage);
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
