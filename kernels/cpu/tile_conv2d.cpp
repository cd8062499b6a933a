#include "tile_conv2d.h"

#if defined(DYNPRUNE_TILES)

#include "epilogue.h"
#include "scratch.h"
#include "tile_block.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

constexpr int64_t kUnits = 2 * kTileRows;  // whose weights lie together: two tiles

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A cell is what lies in memory for one position: a pixel's channels, or all that a row of the kernel reads (`joined`),
// filled up to whole tiles.
int64_t cell(const Bf16Params& p) { return p.joined ? p.w.kernel * p.channels : p.channels; }
int64_t padded_cell(const Bf16Params& p) { return rounded_up(cell(p), kTileDepth); }
int64_t cells_of_row(const Bf16Params& p) { return p.joined ? 1 : p.w.kernel; }  // of the kernel
int64_t taps(const Bf16Params& p) { return p.h.kernel * cells_of_row(p); }
// Positions from one row to the next. The columns right of a row are those left of the next one.
int64_t pitch(const Bf16Params& p) { return p.joined ? p.w.out : p.w.in + p.w.padding; }

// From the first output pixel of some rows to behind the last.
int64_t positions(const Bf16Params& p, int64_t rows) { return (rows - 1) * pitch(p) + p.w.out; }

// Input rows that some output rows read; those that a kernel row meets from one output row to the next lie together.
int64_t input_rows(const Bf16Params& p, int64_t rows) {
  return (rows - 1) * p.h.stride + (p.h.kernel - 1) * p.h.dilation + 1;
}
int64_t staged_rows(const Bf16Params& p, int64_t rows) { return rounded_up(input_rows(p, rows), p.h.stride); }
int64_t place_of_row(const Bf16Params& p, int64_t row, int64_t staged) {
  return row % p.h.stride * (staged / p.h.stride) + row / p.h.stride;
}

// Values of a staged block. Tiles read on behind its end.
int64_t staged_values(const Bf16Params& p, int64_t rows) {
  return (staged_rows(p, rows) * pitch(p) + 2 * p.w.padding + kTileRows) * padded_cell(p);
}
// Values of the weights of so many units, arranged.
int64_t arranged_values(const Bf16Params& p, int64_t units) {
  return taps(p) * padded_cell(p) * rounded_up(units, kUnits);
}

struct Block {
  int64_t image, first, rows;
};

Block block_of(const Bf16Params& p, int64_t index) {
  const int64_t blocks = bf16_blocks(p), first = index % blocks * p.block_rows;
  return {index / blocks, first, min_of(p.block_rows, p.h.out - first)};
}

// `count` values, and zeros up to the end of their last tile.
inline void fill_cell(const uint16_t* from, int64_t count, uint16_t* to) {
#if defined(__AVX512F__)
  for (; count > 0; count -= kTileDepth, from += kTileDepth, to += kTileDepth) {
    const __mmask32 there = count >= kTileDepth ? ~0u : (1u << count) - 1;
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(there, from));
  }
#else
  std::memset(to, 0, static_cast<size_t>(rounded_up(count, kTileDepth)) * sizeof(uint16_t));
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(uint16_t));
#endif
}

// One row of the image, cell by cell.
void stage_row(const Bf16Params& p, const uint16_t* row, uint16_t* to) {
  const int64_t padded = padded_cell(p);
  if (!p.joined) {
    for (int64_t column = 0; column < p.w.in; ++column, to += padded) {
      fill_cell(row + column * p.stride_w, p.channels, to);
    }
    return;
  }
  for (int64_t column = 0; column < p.w.out; ++column, to += padded) {
    const int64_t left = cut_low(p.w, column), there = p.w.kernel - left - cut_high(p.w, column);
    const int64_t first = column * p.w.stride - p.w.padding + left;
    if (there < p.w.kernel) std::memset(to, 0, static_cast<size_t>(padded) * sizeof(uint16_t));
    if (there == p.w.kernel) {
      fill_cell(row + first * p.stride_w, cell(p), to);
    } else if (there > 0) {
      const size_t bytes = static_cast<size_t>(there * p.channels) * sizeof(uint16_t);
      std::memcpy(to + left * p.channels, row + first * p.stride_w, bytes);
    }
  }
}

void stage(const Bf16Params& p, const Block& block, uint16_t* to) {
  const int64_t staged = staged_rows(p, block.rows), padded = padded_cell(p);
  const auto zeros = [&](uint16_t* at, int64_t cells) {
    std::memset(at, 0, static_cast<size_t>(cells * padded) * sizeof(uint16_t));
  };
  const int64_t between = p.joined ? 0 : p.w.padding;
  zeros(to, between);
  to += between * padded;
  for (int64_t r = 0; r < staged; ++r) {
    const int64_t row = block.first * p.h.stride - p.h.padding + r;
    uint16_t* at = to + place_of_row(p, r, staged) * pitch(p) * padded;
    if (row < 0 || row >= p.h.in) {
      zeros(at, pitch(p));
      continue;
    }
    stage_row(p, p.input + block.image * p.stride_n + row * p.stride_h, at);
    zeros(at + (pitch(p) - between) * padded, between);
  }
}

// Two weights each of a tile of units, or half a one.
typedef uint32_t Pairs __attribute__((vector_size(kTileRows * sizeof(uint32_t))));
typedef uint32_t HalfPairs __attribute__((vector_size(kUnitAlign * sizeof(uint32_t))));

// Those from `column` on at `row` of a panel's depth and at the next row, or zeros if there is `alone` no other. Where
// `row` is odd they are halves of two pairs; the last row of an odd depth has no partner.
template <typename V>
void copy_pairs(const uint16_t* panel, int64_t column, int64_t width, int64_t depth, int64_t row, bool alone,
                uint16_t* to) {
  const auto at = [&](int64_t even) {
    const uint16_t* from = panel + even * width;
    V pairs;
    if (even + 1 < depth) {
      std::memcpy(&pairs, from + 2 * column, sizeof(pairs));
    } else {
      for (size_t j = 0; j < sizeof(V) / sizeof(uint32_t); ++j) pairs[j] = from[column + static_cast<int64_t>(j)];
    }
    return pairs;
  };
  V pairs = at(row / 2 * 2);
  if (row % 2 == 1) {
    pairs >>= 16;
    if (!alone) pairs |= at(row + 1) << 16;
  } else if (alone) {
    pairs &= 0xffff;
  }
  std::memcpy(to, &pairs, sizeof(pairs));
}

// The weights of units [unit, unit + kUnits) in the order in which they are read: for each tap and kTileDepth of its
// cell two tiles of sixteen units. What is beyond the cell or the units is zero.
void arrange(const Bf16Params& p, int64_t unit, uint16_t* to) {
  const int64_t depth = taps(p) * cell(p), panel_unit = unit / kPanel * kPanel, first = unit - panel_unit;
  const int64_t width = padded_units(min_of(kPanel, p.units - panel_unit)), last = min_of(width, first + kUnits);
  const uint16_t* panel = p.weight + panel_unit * depth;
  if (cell(p) != padded_cell(p) || last - first < kUnits) {
    std::memset(to, 0, static_cast<size_t>(arranged_values(p, kUnits)) * sizeof(uint16_t));
  }
  for (int64_t tap = 0; tap < taps(p); ++tap) {
    for (int64_t i = 0; i < cell(p); i += 2) {
      uint16_t* row = to + (i - i % kTileDepth) * kUnits + i % kTileDepth * kTileRows;
      for (int64_t column = first; column < last; column += kTileRows, row += kTileRows * kTileDepth) {
        // A panel's width is a multiple of half a tile.
        const auto copy_row = last - column < kTileRows ? copy_pairs<HalfPairs> : copy_pairs<Pairs>;
        copy_row(panel, column, width, depth, tap * cell(p) + i, i + 1 == cell(p), row);
      }
    }
    to += padded_cell(p) * kUnits;
  }
}

// product[positions from `at` in a block of `staged` rows on, kPanel] for kUnits units.
void multiply(const Bf16Params& p, const uint16_t* at, int64_t staged, const uint16_t* weights, int64_t row_blocks,
              int64_t units, float* product) {
  const int64_t padded = padded_cell(p);
  const TileStrides strides{padded, kTileRows * kTileDepth, kPanel};
  const auto steps = [&](int64_t row, const auto& step) {
    const uint16_t* weight = weights;
    for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
      const uint16_t* input = at + (row + place_of_row(p, kh * p.h.dilation, staged) * pitch(p)) * padded;
      for (int64_t kw = 0; kw < cells_of_row(p); ++kw, input += p.w.dilation * padded) {
        for (int64_t i = 0; i < padded; i += kTileDepth, weight += kTileDepth * kUnits) {
          step(input + i, weight, 2 * kTileRows);
        }
      }
    }
  };
  units > kTileRows ? tile_rows<2>(row_blocks, strides, false, product, steps)
                    : tile_rows<1>(row_blocks, strides, false, product, steps);
}

// How many of the positions [from, to) are pixels, where `from` is one.
int64_t pixels_of(const Bf16Params& p, int64_t from, int64_t to) {
  const auto before = [&](int64_t position) {
    return position / pitch(p) * p.w.out + min_of(position % pitch(p), p.w.out);
  };
  return before(to) - before(from);
}

// A block's pixels of the panel that starts at unit `panel`, whose weights are arranged.
void run_panel(const Bf16Params& p, const Block& block, const uint16_t* staged, const uint16_t* weights, int64_t panel,
               const int32_t* zone, double* usage) {
  float* product = scratch(0, kRowTile * kPanel);
  const int64_t units = min_of(kPanel, p.units - panel), all = positions(p, block.rows);
  const int64_t output = (block.image * p.h.out + block.first) * p.w.out;
  for (int64_t from = 0, pixel = 0; from < all;) {
    const int64_t to = min_of(from + kRowTile, all), row_blocks = (to - from + kTileRows - 1) / kTileRows;
    for (int64_t unit = 0; unit < units; unit += kUnits) {
      multiply(p, staged + from * padded_cell(p), staged_rows(p, block.rows),
               weights + unit / kUnits * arranged_values(p, kUnits), row_blocks, units - unit, product + unit);
    }
    EpilogueTileOf<uint16_t> t{};
    t.product = product;
    t.product_stride = kPanel;
    t.rows = pixels_of(p, from, to);
    t.units = units;
    t.run = p.w.out - from % pitch(p);
    t.next_run = p.w.out;
    t.gap = pitch(p) - p.w.out;
    t.bias = p.bias == nullptr ? nullptr : p.bias + panel;
    t.zone = zone == nullptr ? nullptr : zone + pixel;
    t.bias_stride = p.pixel_units;
    t.output = p.output + (output + pixel) * p.pixel_units + panel;
    t.output_stride = p.pixel_units;
    t.usage = usage == nullptr ? nullptr : usage + panel;
    t.usage_stride = padded_units(p.units);
    epilogue(t, p.activation);
    pixel += t.rows;
    // On to the next pixel.
    from = to % pitch(p) < p.w.out ? to : (to / pitch(p) + 1) * pitch(p);
  }
}

}  // namespace

void tile_conv2d_range(const Bf16Params& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  TileRegisters registers;
  uint16_t* staged = reinterpret_cast<uint16_t*>(scratch(1, staged_values(p, p.block_rows) / 2));
  int32_t* zone = has_zones(p) ? reinterpret_cast<int32_t*>(scratch(2, p.block_rows * p.w.out)) : nullptr;
  uint16_t* weights = reinterpret_cast<uint16_t*>(scratch(3, arranged_values(p, p.block_units) / 2));
  const int64_t blocks = p.batch * bf16_blocks(p), values = arranged_values(p, kUnits);
  int64_t arranged = -1;  // the first of the units whose weights are
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task / blocks * p.block_units, last = min_of(first + p.block_units, p.units);
    for (int64_t unit = first; unit < last && arranged != first; unit += kUnits) {
      arrange(p, unit, weights + (unit - first) / kUnits * values);
    }
    arranged = first;
    const Block block = block_of(p, task % blocks);
    stage(p, block, staged);
    find_zones(p, block.first, block.rows, zone);
    for (int64_t panel = first; panel < last; panel += kPanel) {
      run_panel(p, block, staged, weights + (panel - first) / kUnits * values, panel, zone, usage);
    }
  }
}

namespace {

// In cycles, roughly and of all threads together, what the products, the inputs and the weights take one way and the
// other; the numbers are measured.
double staged_cost(const Bf16Params& p, int64_t threads) {
  constexpr int64_t kInL1 = 20 * 1024;  // arranged values of kUnits units
  const double step = arranged_values(p, kUnits) <= kInL1 ? 21 : 26;
  const int64_t blocks = p.batch * bf16_blocks(p), parts = (p.units + p.block_units - 1) / p.block_units;
  const int64_t tiles = rounded_up(positions(p, p.block_rows), kTileRows) / kTileRows *
                        (rounded_up(p.units, kTileRows) / kTileRows) * (taps(p) * padded_cell(p) / kTileDepth);
  const int64_t staged = parts * staged_values(p, p.block_rows) / kTileDepth;
  const int64_t arranged = min_of(threads, blocks) * arranged_values(p, p.units) / kTileDepth;
  return static_cast<double>(blocks) * (step * static_cast<double>(tiles) + 4 * static_cast<double>(staged)) +
         13 * static_cast<double>(arranged);
}

double gathered_cost(const Bf16Params& p) {
  const int64_t rows = bf16_rows(p), lines = rounded_up(p.h.kernel * p.w.kernel * p.channels, kTileDepth) / kTileDepth;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows * (rounded_up(p.units, kTileRows) / kTileRows) * lines;
  const double gathering = 3.3 * static_cast<double>(lines) + 6 * static_cast<double>(p.h.kernel);
  return static_cast<double>(rows * (p.group > 1 ? panel_count(p.units) : 1)) * gathering +
         (p.group > 1 ? 33 : 29) * static_cast<double>(tiles);
}

}  // namespace

void plan_tile_conv2d(Bf16Params& p, int64_t threads) {
  p.block_rows = 0;
  if (p.h.kernel * p.w.kernel == 1 || p.channels == 0 || p.units == 0 || bf16_rows(p) == 0) return;
  // Joined, there are no columns between rows, and few channels fill tiles; but it is more to stage.
  const bool could_join = p.stride_w == p.channels && p.w.dilation == 1, steps = p.h.stride == 1 && p.w.stride == 1;
  p.joined = could_join && (!steps || p.w.kernel * p.channels <= 2 * kTileDepth);
  if (!p.joined && (!steps || p.w.padding > (p.w.kernel - 1) * p.w.dilation)) return;
  // A part of L2 each, for what is read again and again.
  constexpr int64_t kStagedValues = 64 * 1024, kWeightValues = 256 * 1024;
  p.block_units = rounded_up(p.units, kPanel);
  while (p.block_units > kPanel && arranged_values(p, p.block_units) > kWeightValues) {
    p.block_units = rounded_up(p.block_units / 2, kPanel);
  }
  int64_t blocks = 1;
  const auto rows = [&] { return (p.h.out + blocks - 1) / blocks; };
  while (rows() > 1 && (staged_values(p, rows()) > kStagedValues || p.batch * blocks < threads)) ++blocks;
  p.block_rows = rows();
  if (staged_cost(p, threads) >= gathered_cost(p)) p.block_rows = 0;
}

}  // namespace dynprune::DYNPRUNE_ISA

#endif
