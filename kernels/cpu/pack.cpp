#include "pack.h"

#include "kernels.h"
#include "scratch.h"
#include "simd.h"
#include "transpose.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

constexpr int64_t kAhead = 128;      // floats of each row that are fetched ahead
constexpr int64_t kFloatRun = 2048;  // columns whose products are added up in float

// Where the columns of a block of the master go, and what they are worth in the sums.
struct Block {
  int64_t first, count;  // columns [first, first + count) of the master
  bool wanted;           // whether any of them is packed
};

// Sixteen columns of the master, one vector of units each, to their places in the panel.
void place(const PackParams& p, const Block& block, const Floats (&v)[kLanes], Floats scale, float* to, int64_t width,
           int64_t lanes) {
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t k = p.places == nullptr ? block.first + i : p.places[block.first + i];
    if (k < 0) continue;
    if (p.large && width == kPanel) {
      stream(to + k * width, v[i] * scale);
    } else if (lanes == kLanes) {
      store(to + k * width, v[i] * scale);
    } else {
      store_part(to + k * width, v[i] * scale, lanes);
    }
  }
}

bool any_placed(const PackParams& p, int64_t first, int64_t count) {
  if (p.places == nullptr) return true;
  for (int64_t i = first; i < first + count; ++i) {
    if (p.places[i] >= 0) return true;
  }
  return false;
}

// Adds up weights times values for kLanes units at a time: in float over some columns, then in double.
class Sums {
 public:
  Sums(const PackParams& p)
      : p_(p), part_(scratch(0, 3 * kLanes * p.taps)), total_(reinterpret_cast<double*>(part_ + kLanes * p.taps)) {}

  void start() {
    channel_ = tap_ = 0;
    zero(part_, kLanes * p_.taps);
    for (int64_t i = 0; i < kLanes * p_.taps; ++i) total_[i] = 0.0;
  }

  void add(const Floats (&v)[kLanes], int64_t count) {
    if (p_.taps == 1) {  // without a way through memory for each column
      Floats even = load(part_), odd = Floats{};
      for (int64_t i = 0; i < count; ++i) (i % 2 == 0 ? even : odd) += v[i] * splat(p_.values[channel_++]);
      store(part_, even + odd);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      float* to = part_ + tap_ * kLanes;
      store(to, load(to) + v[i] * splat(p_.values[channel_]));
      if (++tap_ == p_.taps) {
        tap_ = 0;
        ++channel_;
      }
    }
  }

  void flush() {
    for (int64_t i = 0; i < kLanes * p_.taps; ++i) total_[i] += static_cast<double>(part_[i]);
    zero(part_, kLanes * p_.taps);
  }

  void finish(int64_t unit, int64_t count) {
    flush();
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t t = 0; t < p_.taps; ++t) p_.sums[(unit + j) * p_.taps + t] = total_[t * kLanes + j];
    }
  }

 private:
  const PackParams& p_;
  float* part_;    // [taps, kLanes]
  double* total_;  // [taps, kLanes]
  int64_t channel_ = 0, tap_ = 0;
};

// Sixteen rows of the master, null behind the last, and what their units are scaled with.
struct Rows {
  const float* row[kLanes];
  Floats scale;
};

Rows rows_at(const PackParams& p, int64_t unit) {
  Rows rows{};
  float scales[kLanes] = {};
  for (int64_t j = 0; j < min_of(kLanes, p.units - unit); ++j) {
    const int64_t index = p.rows == nullptr ? unit + j : p.rows[unit + j];
    rows.row[j] = p.master + index * p.row_stride;
    if (p.scale != nullptr) scales[j] = p.scale[index];
  }
  rows.scale = p.scale != nullptr ? load(scales) : splat(1.f);
  return rows;
}

// Of a row's columns those that are packed, in the master's order.
struct Wanted {
  uint16_t* masks;  // for each block of kLanes columns
  int32_t *columns, *places;
  int64_t count;
};

Wanted wanted_columns(const PackParams& p) {
  const int64_t blocks = (p.row_stride + kLanes - 1) / kLanes;
  Wanted w{reinterpret_cast<uint16_t*>(scratch(2, blocks)), reinterpret_cast<int32_t*>(scratch(3, 2 * p.depth)),
           nullptr, 0};
  w.places = w.columns + p.depth;
  std::memset(w.masks, 0, static_cast<size_t>(blocks) * sizeof(uint16_t));
  for (int64_t c = 0; c < p.row_stride; ++c) {
    if (p.places[c] < 0) continue;
    w.masks[c / kLanes] = static_cast<uint16_t>(w.masks[c / kLanes] | 1u << c % kLanes);
    w.columns[w.count] = static_cast<int32_t>(c);
    w.places[w.count++] = p.places[c];
  }
  return w;
}

// Columns [first, last) of the master, of which [begin, end) of the wanted ones lie there.
struct Piece {
  int64_t first, last, begin, end;
};

// The wanted ones of a piece of a row, side by side; `next` is the row that will be read then.
#if defined(__AVX512F__)
void pick(const Wanted& w, const Piece& piece, int64_t row_stride, const float* row, const float* next, float* to) {
  for (int64_t c = piece.first; c < piece.last; c += kLanes) {
    if (next != nullptr) __builtin_prefetch(next + c, 0, 2);
    const __mmask16 mask = w.masks[c / kLanes];
    const Floats v = c + kLanes <= row_stride ? load(row + c) : load_part(row + c, row_stride - c);
    store(to, Floats(_mm512_maskz_compress_ps(mask, v)));  // over what comes next
    to += __builtin_popcount(mask);
  }
}
#else
void pick(const Wanted& w, const Piece& piece, int64_t, const float* row, const float*, float* to) {
  for (int64_t i = piece.begin; i < piece.end; ++i) *to++ = row[w.columns[i]];
}
#endif

// Where many columns are left out: rows are read one after the other, as memory likes it, and only what is wanted is
// transposed, without a branch for each column.
void pack_some_columns(const PackParams& p, const Wanted& w, int64_t unit, int64_t width, int64_t j0, float* panel) {
  constexpr int64_t kColumns = 1024;  // of the master at a time
  constexpr int64_t kStride = kColumns + 3 * kLanes;
  const Rows rows = rows_at(p, unit + j0);
  const int64_t lanes = min_of(kLanes, width - j0);
  float* buffer = scratch(4, kLanes * kStride);
  for (Piece piece{0, 0, 0, 0}; piece.last < p.row_stride;) {
    piece = {piece.last, min_of(piece.last + kColumns, p.row_stride), piece.end, piece.end};
    while (piece.end < w.count && w.columns[piece.end] < piece.last) ++piece.end;
    for (int64_t j = 0; j < kLanes; ++j) {
      const float* next = j + 1 < kLanes ? rows.row[j + 1] : nullptr;
      float* to = buffer + j * kStride;
      if (rows.row[j] == nullptr) {
        zero(to, piece.end - piece.begin);
      } else {
        pick(w, piece, p.row_stride, rows.row[j], next, to);
      }
    }
    for (int64_t i = piece.begin; i < piece.end; i += kLanes) {
      Floats v[kLanes];
      for (int j = 0; j < kLanes; ++j) v[j] = load(buffer + j * kStride + i - piece.begin);
      transpose(v);
      const int32_t* places = w.places + i;
      if (lanes == kLanes && piece.end - i >= kLanes) {
#pragma GCC unroll 16
        for (int k = 0; k < kLanes; ++k) store(panel + places[k] * width + j0, v[k] * rows.scale);
        continue;
      }
      for (int64_t k = 0; k < min_of(kLanes, piece.end - i); ++k) {
        store_part(panel + places[k] * width + j0, v[k] * rows.scale, lanes);
      }
    }
  }
}

}  // namespace

// Sixteen rows of the master at a time are read once, as they lie, in blocks of sixteen columns that are transposed:
// each column of a block is then one whole line of a panel.
void pack_range(const PackParams& p, int64_t begin, int64_t end) {
  Sums sums(p);
  const bool some =
      p.packed != nullptr && p.places != nullptr && p.values == nullptr && 4 * p.depth <= 3 * p.row_stride;
  const Wanted wanted = some ? wanted_columns(p) : Wanted{};
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t unit = panel * kPanel, units = min_of(kPanel, p.units - unit), width = padded_units(units);
    for (int64_t j0 = 0; j0 < width; j0 += kLanes) {
      if (some) {
        pack_some_columns(p, wanted, unit, width, j0, p.packed + unit * p.depth);
        continue;
      }
      const int64_t real = min_of(kLanes, units - j0), lanes = min_of(kLanes, width - j0);
      const Rows rows = rows_at(p, unit + j0);
      if (p.values != nullptr) sums.start();
      for (int64_t c = 0; c < p.row_stride; c += kLanes) {
        Block block{c, min_of(kLanes, p.row_stride - c), false};
        block.wanted = p.packed != nullptr && any_placed(p, c, block.count);
        if (!block.wanted && p.values == nullptr) continue;
        Floats v[kLanes];
        for (int j = 0; j < kLanes; ++j) {
          const float* row = rows.row[j];
          if (row == nullptr) {
            v[j] = Floats{};
            continue;
          }
          __builtin_prefetch(row + c + kAhead, 0, 2);
          v[j] = block.count == kLanes ? load(row + c) : load_part(row + c, block.count);
        }
        transpose(v);
        if (block.wanted) place(p, block, v, rows.scale, p.packed + unit * p.depth + j0, width, lanes);
        if (p.values == nullptr) continue;
        sums.add(v, block.count);
        if (c % kFloatRun == 0) sums.flush();
      }
      if (p.values != nullptr && real > 0) sums.finish(unit + j0, real);
    }
  }
  if (p.large) streamed();
}

}  // namespace dynprune::DYNPRUNE_ISA
