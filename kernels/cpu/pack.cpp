#include "pack.h"

#include "kernels.h"
#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

void pack_range(const PackParams& p, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t unit = panel * kPanel, units = min_of(kPanel, p.units - unit), width = padded_units(units);
    float* to = p.packed + unit * p.depth;
    const float* from[kPanel];
    float scale[kPanel];
    for (int64_t j = 0; j < units; ++j) {
      const int64_t row = p.rows == nullptr ? unit + j : p.rows[unit + j];
      from[j] = p.master + row * p.row_stride;
      scale[j] = p.scale == nullptr ? 1.f : p.scale[row];
    }
    // Sixteen columns at a time: each row is read along its cache lines, each packed line is written while it is in L1.
    for (int64_t k0 = 0; k0 < p.depth; k0 += kLanes) {
      const int64_t k1 = min_of(p.depth, k0 + kLanes);
      for (int64_t j = 0; j < units; ++j) {
        for (int64_t k = k0; k < k1; ++k) to[k * width + j] = from[j][p.columns[k]] * scale[j];
      }
      for (int64_t k = k0; k < k1; ++k) {
        for (int64_t j = units; j < width; ++j) to[k * width + j] = 0.f;
      }
    }
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
