#include "pack.h"

#include "kernels.h"
#include "scratch.h"
#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// Columns of the master that are picked at once, for kLanes rows: what L1 holds.
constexpr int64_t kChunk = 256;

// v[i][j] and v[j][i] change places.
inline void transpose(Floats (&v)[kLanes]) {
#if defined(__AVX512F__)
  // At each step halves, quarters, ... of pairs of rows.
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    Ints low, high;
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      low[j] = j & step ? kLanes + j - step : j;
      high[j] = j & step ? kLanes + j : j + step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & step) continue;
      const Floats a = v[i], b = v[i + step];
      v[i] = _mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(low), b);
      v[i + step] = _mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(high), b);
    }
  }
#else
  float all[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) store(all[i], v[i]);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) v[i][j] = all[j][i];
  }
#endif
}

// The picked columns of one row from columns [first, first + count) on, `count` of them.
void pick(const PackParams& p, const float* row, int64_t first, int64_t count, float* to) {
  for (int64_t k = 0; k < count; ++k) to[k] = row[p.columns[first + k]];
}

// The same where the columns rise: packed [depth] from vectors of the row, by the bits of `p.picked`.
int64_t compress_chunk(const PackParams& p, const float* row, int64_t begin, int64_t end, float* to) {
  int64_t count = 0;
  for (int64_t c = begin; c < end; c += kLanes) {
    const int64_t lanes = min_of(kLanes, p.row_stride - c);
    const Floats v = lanes == kLanes ? load(row + c) : load_part(row + c, lanes);
    count += store_picked(to + count, v, p.picked[c / kLanes]);
  }
  return count;
}

// Rows of `from` (nullptr: zero) times `scale`, count columns, to columns of `to`.
void turn(const float* const* from, const float* scale, int64_t first, int64_t count, float* to, int64_t width,
          int64_t lanes) {
  for (int64_t k = 0; k < count; k += kLanes) {
    const int64_t some = min_of(kLanes, count - k);
    Floats v[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      if (from[j] == nullptr) {
        v[j] = Floats{};
      } else {
        const float* p = from[j] + first + k;
        v[j] = (some == kLanes ? load(p) : load_part(p, some)) * splat(scale[j]);
      }
    }
    transpose(v);
    for (int64_t i = 0; i < some; ++i) {
      float* line = to + (k + i) * width;
      lanes == kLanes ? store(line, v[i]) : store_part(line, v[i], lanes);
    }
  }
}

}  // namespace

void pack_range(const PackParams& p, int64_t begin, int64_t end) {
  float* buffer = scratch(0, kLanes * (kChunk + kLanes));
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t unit = panel * kPanel, units = min_of(kPanel, p.units - unit), width = padded_units(units);
    for (int64_t j0 = 0; j0 < width; j0 += kLanes) {
      const float *row[kLanes], *source[kLanes];
      float scale[kLanes];
      for (int64_t j = 0; j < kLanes; ++j) {
        const int64_t u = unit + j0 + j;
        const bool real = u < p.units && j0 + j < units;
        const int64_t index = !real ? 0 : p.rows == nullptr ? u : p.rows[u];
        row[j] = real ? p.master + index * p.row_stride : nullptr;
        source[j] = real && p.columns != nullptr ? buffer + j * (kChunk + kLanes) : row[j];
        scale[j] = p.scale == nullptr ? 1.f : p.scale[index];
      }
      float* to = p.packed + unit * p.depth + j0;
      const int64_t lanes = min_of(kLanes, width - j0);
      if (p.columns == nullptr) {
        turn(row, scale, 0, p.depth, to, width, lanes);
      } else if (p.picked != nullptr) {
        for (int64_t c = 0, k = 0; c < p.row_stride; c += kChunk) {
          const int64_t stop = min_of(c + kChunk, p.row_stride);
          int64_t count = 0;
          for (int64_t j = 0; j < kLanes; ++j) {
            if (row[j] == nullptr) continue;
            for (int64_t i = stop; i < stop + kChunk; i += kLanes) __builtin_prefetch(row[j] + i, 0, 2);
            count = compress_chunk(p, row[j], c, stop, buffer + j * (kChunk + kLanes));
          }
          turn(source, scale, 0, count, to + k * width, width, lanes);
          k += count;
        }
      } else {
        for (int64_t k = 0; k < p.depth; k += kChunk) {
          const int64_t count = min_of(kChunk, p.depth - k);
          for (int64_t j = 0; j < kLanes; ++j) {
            if (row[j] != nullptr) pick(p, row[j], k, count, buffer + j * (kChunk + kLanes));
          }
          turn(source, scale, 0, count, to + k * width, width, lanes);
        }
      }
    }
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
