#include "winograd.h"

#include "conv2d_block.h"
#include "microkernel.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// A pair is two neighbouring pixels of an output row; its four input columns d0 .. d3 and the three weights g0 .. g2 of
// a kernel row become four components each, whose products m0 .. m3 make up the pair:
//   input    d0 - d2,  d1 + d2,            d2 - d1,            d1 - d3
//   weights  g0,       (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2
//   pixels   m0 + m1 + m2,  m1 - m2 - m3
constexpr int64_t kComponents = 4;
// Products that are in L1 at once, beside weights and input.
constexpr int64_t kProductFloats = 4608;
int64_t pair_tile(int64_t width) {
  const int64_t fit = pixels_per_tile(width);
  return max_of(1, kProductFloats / (kComponents * width * fit)) * fit;
}

int64_t pairs_per_row(const Conv2dParams& p) { return (p.w.out + 1) / 2; }

// Columns that the pairs of a row read, borders included.
int64_t staged_columns(const Conv2dParams& p) { return 2 * pairs_per_row(p) + 2; }

// One panel [kernel_h, 3, channels, width] to [kComponents, kernel_h, channels, width].
void transform_weights(const Conv2dParams& p, const float* panel, int64_t width, float* to) {
  const int64_t tap = p.channels * width, component = p.h.kernel * tap;
  const Floats half = splat(0.5f);
  for (int64_t kh = 0; kh < p.h.kernel; ++kh, panel += 3 * tap, to += tap) {
    for (int64_t i = 0; i < tap; i += kLanes) {
      const int64_t lanes = min_of(kLanes, tap - i);
      const Floats g0 = load_part(panel + i, lanes), g1 = load_part(panel + tap + i, lanes),
                   g2 = load_part(panel + 2 * tap + i, lanes);
      const Floats sides = (g0 + g2) * half, middle = g1 * half;
      store_part(to + i, g0, lanes);
      store_part(to + component + i, sides + middle, lanes);
      store_part(to + 2 * component + i, sides - middle, lanes);
      store_part(to + 3 * component + i, g2, lanes);
    }
  }
}

// One staged row [2 pairs + 2, channels] to `pairs` pairs of each component, component k at to + k * component. Whole
// vectors: what goes past a pair's channels is written again by the next one, and the last one has a vector of slack.
void transform_row(const float* row, int64_t pairs, int64_t channels, float* to, int64_t component) {
  for (int64_t pair = 0; pair < pairs; ++pair, row += 2 * channels, to += channels) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const float* d = row + c;
      const Floats d0 = load(d), d1 = load(d + channels), d2 = load(d + 2 * channels), d3 = load(d + 3 * channels);
      store(to + c, d0 - d2);
      store(to + component + c, d1 + d2);
      store(to + 2 * component + c, d2 - d1);
      store(to + 3 * component + c, d1 - d3);
    }
  }
}

// The input of a block, by component [kComponents, rows, pairs, channels]. `row` holds one staged row.
void stage(const Conv2dParams& p, const Block& block, float* row, float* to, int64_t component) {
  const int64_t top = block.first * p.h.stride - p.h.padding, pairs = pairs_per_row(p), channels = p.channels;
  if (channels == 0) return;
  // Pairs whose columns lie in the image come straight from it; whole vectors read this many columns more.
  const int64_t more = ((channels + kLanes - 1) / kLanes * kLanes - 1) / channels;
  const bool tight = p.input_indices == nullptr && p.stride_c == 1 && p.stride_w == channels;
  const int64_t left = min_of(pairs, (p.w.padding + 1) / 2);
  const int64_t right = tight ? max_of(left, min_of(pairs, (p.w.in + p.w.padding - 2 - more) / 2)) : left;
  for (int64_t r = 0; r < window_rows(p, block.rows); ++r, to += pairs * channels) {
    const int64_t ih = top + r;
    if (ih < 0 || ih >= p.h.in) continue;  // left out of the products
    const float* inside = block.image + ih * p.stride_h + (2 * left - p.w.padding) * channels;
    if (right > left) {
      stage_columns(p, block.image, ih, 0, 2 * left + 2, row);
      transform_row(row, left, channels, to, component);
      transform_row(inside, right - left, channels, to + left * channels, component);
      stage_columns(p, block.image, ih, 2 * right, staged_columns(p), row);
      transform_row(row, pairs - right, channels, to + right * channels, component);
    } else {
      stage_columns(p, block.image, ih, 0, staged_columns(p), row);
      transform_row(row, pairs, channels, to, component);
    }
  }
}

// Output rows of a block from `row` on whose pairs can be taken as one run: they lie next to each other, and the same
// kernel rows fall outside the image.
int64_t alike_rows(const Conv2dParams& p, const Block& block, int64_t row) {
  int64_t next = row + 1;
  if (p.h.stride != 1) return 1;
  const int64_t low = cut_low(p.h, block.first + row), high = cut_high(p.h, block.first + row);
  while (next < block.rows && cut_low(p.h, block.first + next) == low && cut_high(p.h, block.first + next) == high) {
    ++next;
  }
  return next - row;
}

// product[pairs, kComponents, width] for pairs [pair, pair + pairs) of the run that starts at output row first + row.
void multiply_pairs(const Conv2dParams& p, const float* input, int64_t component, const float* weight, int64_t width,
                    int64_t first, int64_t row, int64_t pair, int64_t pairs, float* product) {
  const int64_t row_floats = pairs_per_row(p) * p.channels, above = cut_low(p.h, first + row);
  Taps taps{};
  taps.pixel_stride = p.channels;
  taps.tap_stride_h = p.h.dilation * row_floats;
  taps.kernel_h = max_of(0, p.h.kernel - above - cut_high(p.h, first + row));
  taps.kernel_w = 1;
  taps.channels = p.channels;
  taps.input = input + (row * p.h.stride + above * p.h.dilation) * row_floats + pair * p.channels;
  weight += above * p.channels * width;
  for (int64_t k = 0; k < kComponents; ++k) {
    multiply_run(pairs, taps, weight, width, product + k * width, kComponents * width);
    taps.input += component;
    weight += p.h.kernel * p.channels * width;
  }
}

// Pairs [pairs, kComponents, width] to pixels [<= 2 * pairs, width] in place, from pair number `pair` of a row on; the
// second pixel of the last pair of an odd row does not exist. Returns the number of pixels.
int64_t combine_pairs(const Conv2dParams& p, int64_t pair, int64_t pairs, int64_t width, float* product) {
  const int64_t per_row = pairs_per_row(p);
  const float* from = product;
  float* to = product;
  for (; pairs > 0; --pairs, from += kComponents * width) {
    const bool both = ++pair < per_row || p.w.out % 2 == 0;
    if (pair == per_row) pair = 0;
    int64_t j = 0;
    for (; j + kLanes <= width; j += kLanes) {
      const Floats m0 = load(from + j), m1 = load(from + width + j), m2 = load(from + 2 * width + j),
                   m3 = load(from + 3 * width + j);
      store(to + j, m0 + m1 + m2);
      if (both) store(to + width + j, m1 - m2 - m3);
    }
    if (j < width) {
      const Half m0 = load<Half>(from + j), m1 = load<Half>(from + width + j), m2 = load<Half>(from + 2 * width + j),
                 m3 = load<Half>(from + 3 * width + j);
      store(to + j, m0 + m1 + m2);
      if (both) store(to + width + j, m1 - m2 - m3);
    }
    to += (both ? 2 : 1) * width;
  }
  return (to - product) / width;
}

}  // namespace

bool winograd_pays(const Conv2dParams& p, int64_t threads) {
  // Fewer channels or units than this: the transforms cost what the products save. Fewer pairs: the weights' do.
  constexpr int64_t kLeastWidth = 12, kLeastColumns = 4, kLeastPairs = 16;
  return !p.depthwise && p.w.kernel == 3 && p.w.stride == 1 && p.w.dilation == 1 &&
         min_of(p.channels, p.units) >= kLeastWidth && p.w.out >= kLeastColumns &&
         p.batch * p.h.out * pairs_per_row(p) >= kLeastPairs * threads;
}

void winograd_range(const Conv2dParams& p, double* usage, int64_t begin, int64_t end) {
  const int64_t pairs = pairs_per_row(p), depth = p.h.kernel * 3 * p.channels;
  const int64_t component = window_rows(p, p.block_rows) * pairs * p.channels + kLanes;
  float* product = scratch(0, kProductFloats);
  float* input = scratch(1, kComponents * component);
  int32_t* zone = has_zones(p) ? reinterpret_cast<int32_t*>(scratch(2, p.block_rows * p.w.out)) : nullptr;
  float* weight = scratch(3, kComponents * p.h.kernel * p.channels * kPanel);
  float* row = scratch(4, staged_columns(p) * p.channels + kLanes);
  for (int64_t first = begin, last; first < end; first = last) {
    const int64_t of_part = conv2d_tasks_of_part(p);
    last = min_of(end, (first / of_part + 1) * of_part);
    const Units units = units_of(p, first);
    for (int64_t unit = units.first; unit < units.last; unit += kPanel) {
      const int64_t width = padded_units(min_of(kPanel, p.units - unit)), tile = pair_tile(width);
      transform_weights(p, p.weight + unit * depth, width, weight);
      for (int64_t task = first; task < last; ++task) {
        const Block block = block_of(p, task);
        stage(p, block, row, input, component);
        find_zones(p, block.first, block.rows, zone);
        int64_t pixel = 0;
        for (int64_t r = 0, rows = 0; r < block.rows; r += rows) {
          rows = alike_rows(p, block, r);
          for (int64_t pair = 0; pair < rows * pairs; pair += tile) {
            const int64_t count = min_of(tile, rows * pairs - pair);
            multiply_pairs(p, input, component, weight, width, block.first, r, pair, count, product);
            const int64_t pixels = combine_pairs(p, pair % pairs, count, width, product);
            finish(p, block, zone, unit, pixel, pixels, product, width, usage);
            pixel += pixels;
          }
        }
      }
    }
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
