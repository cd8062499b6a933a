#include "bfloat16.h"

#include "epilogue.h"
#include "kernels.h"
#include "product_bf16.h"
#include "scratch.h"
#include "tile_conv2d.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

int64_t depth_of(const Bf16Params& p) { return p.h.kernel * p.w.kernel * p.channels; }

// Whether the pixels' inputs lie at equal distances, so that the products can read them where they are.
bool reads_input(const Bf16Params& p) {
  const auto plain = [](const ConvAxis& a) { return a.kernel == 1 && a.stride == 1 && a.padding == 0; };
  return plain(p.h) && plain(p.w) && (p.h.in == 1 || p.stride_h == p.w.in * p.stride_w) &&
         (p.batch == 1 || p.stride_n == p.h.in * p.w.in * p.stride_w);
}

struct Pixel {
  int64_t image, row, column;  // of the output
};

Pixel pixel_at(const Bf16Params& p, int64_t index) {
  return {index / (p.h.out * p.w.out), index / p.w.out % p.h.out, index % p.w.out};
}

// Forward by at most the rest of the row.
void advance(const Bf16Params& p, int64_t pixels, Pixel* pixel) {
  pixel->column += pixels;
  if (pixel->column < p.w.out) return;
  pixel->column = 0;
  if (++pixel->row < p.h.out) return;
  pixel->row = 0;
  ++pixel->image;
}

// The output columns whose windows lie inside the image, and whose rows of the window are one piece each.
struct Columns {
  int64_t first, last;
};

Columns whole_windows(const Bf16Params& p) {
  const ConvAxis& a = p.w;
  const int64_t room = a.in + a.padding - (a.kernel - 1) * a.dilation - 1;
  if (a.dilation != 1 || p.stride_w != p.channels || room < 0) return {0, 0};
  return {(a.padding + a.stride - 1) / a.stride, min_of(a.out, room / a.stride + 1)};
}

// What is appended to a gathered row comes in pieces of this many values, the last of which may write on behind its
// end, over what is still to come.
constexpr int64_t kPiece = 32;

inline uint16_t* append_zeros(uint16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kPiece) std::memset(to + i, 0, kPiece * sizeof(uint16_t));
  return to + n;
}

// From an image, which nothing is read of beside these values.
inline uint16_t* append(uint16_t* to, const uint16_t* from, int64_t n) {
#if defined(__AVX512F__)
  // A row has many short pieces: three of nine values for a window of 3 x 3 over three channels.
  int64_t i = 0;
  for (; i + kPiece <= n; i += kPiece) std::memcpy(to + i, from + i, kPiece * sizeof(uint16_t));
  const __mmask32 rest = (1u << (n - i)) - 1;
  if (n - i > kPiece / 2) {
    _mm512_storeu_si512(to + i, _mm512_maskz_loadu_epi16(rest, from + i));
  } else if (i < n) {  // and half a line crosses into the next one half as often
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_maskz_loadu_epi16(static_cast<__mmask16>(rest), from + i));
  }
#else
  if (n > 0) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(uint16_t));  // no channels: `from` may be null
#endif
  return to + n;
}

// What a pixel reads, in the order of the weight's depth, up to kPiece values more than that; zeros outside the image.
void gather_pixel(const Bf16Params& p, const Pixel& pixel, uint16_t* to) {
  const int64_t kernel_row = p.w.kernel * p.channels;
  const int64_t left = cut_low(p.w, pixel.column), right = min_of(cut_high(p.w, pixel.column), p.w.kernel - left);
  const int64_t taps = p.w.kernel - left - right;
  const int64_t above = cut_low(p.h, pixel.row), below = p.h.kernel - cut_high(p.h, pixel.row);
  const int64_t top = pixel.row * p.h.stride - p.h.padding;
  const int64_t column = pixel.column * p.w.stride - p.w.padding + left * p.w.dilation;
  const bool together = p.w.dilation == 1 && p.stride_w == p.channels;
  for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
    if (kh < above || kh >= below || taps == 0) {
      to = append_zeros(to, kernel_row);
      continue;
    }
    const uint16_t* from =
        p.input + pixel.image * p.stride_n + (top + kh * p.h.dilation) * p.stride_h + column * p.stride_w;
    to = append_zeros(to, left * p.channels);
    if (together) {
      to = append(to, from, taps * p.channels);
    } else {
      for (int64_t kw = 0; kw < taps; ++kw) to = append(to, from + kw * p.w.dilation * p.stride_w, p.channels);
    }
    to = append_zeros(to, right * p.channels);
  }
}

// The same for some pixels of one row with whole windows, which is most of them and takes no looking for borders.
void gather_run(const Bf16Params& p, const Pixel& pixel, int64_t pixels, uint16_t* to, int64_t stride) {
  const int64_t kernel_row = p.w.kernel * p.channels;
  const int64_t above = cut_low(p.h, pixel.row), below = p.h.kernel - cut_high(p.h, pixel.row);
  const uint16_t* from = p.input + pixel.image * p.stride_n + (pixel.row * p.h.stride - p.h.padding) * p.stride_h +
                         (pixel.column * p.w.stride - p.w.padding) * p.stride_w;
  for (int64_t r = 0; r < pixels; ++r, to += stride, from += p.w.stride * p.stride_w) {
    uint16_t* row = to;
    for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
      const bool outside = kh < above || kh >= below;
      row = outside ? append_zeros(row, kernel_row) : append(row, from + kh * p.h.dilation * p.stride_h, kernel_row);
    }
  }
}

// What `rows` pixels from `pixel` on read, [rows, stride].
void gather(const Bf16Params& p, Pixel pixel, int64_t rows, uint16_t* to, int64_t stride) {
  const Columns whole = whole_windows(p);
  while (rows > 0) {
    const bool together = pixel.column >= whole.first && pixel.column < whole.last;
    const int64_t some = together ? min_of(rows, whole.last - pixel.column) : 1;
    if (together) {
      gather_run(p, pixel, some, to, stride);
    } else {
      gather_pixel(p, pixel, to);
    }
    advance(p, some, &pixel);
    rows -= some;
    to += some * stride;
  }
}

// The row of the bias table for each of `rows` pixels from `pixel` on.
void find_zones(const Bf16Params& p, Pixel pixel, int64_t rows, int32_t* zone) {
  for (int64_t r = 0; r < rows; ++r, advance(p, 1, &pixel)) {
    zone[r] = static_cast<int32_t>(zone_of(p.h, pixel.row) * zone_count(p.w) + zone_of(p.w, pixel.column));
  }
}

// Values from one gathered row to the next: whole blocks of the depth, and an odd number of cache lines, so that the
// same line of all rows is not sought in a few places of the cache.
int64_t gathered_stride(int64_t depth) { return (depth + kPiece - 1) / kPiece / 2 * 2 * kPiece + kPiece; }

// Room for the rows of a task. Behind each there are zeros up to the end of its last block, and what is gathered later
// writes nothing else there; behind all of them there is room for what the last piece writes too much.
uint16_t* gathered_rows(int64_t rows, int64_t depth) {
  const int64_t stride = gathered_stride(depth);
  rows = (rows + kRowBlock - 1) / kRowBlock * kRowBlock;
  uint16_t* const gathered = reinterpret_cast<uint16_t*>(scratch(1, (rows * stride + kPiece) / 2));
  if (depth % kDepthBlock == 0) return gathered;
  for (int64_t r = 0; r < rows; ++r) append_zeros(gathered + r * stride + depth, kDepthBlock - depth % kDepthBlock);
  return gathered;
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void bf16_range(const Bf16Params& p, double* usage, int64_t begin, int64_t end) {
#if defined(DYNPRUNE_TILES)
  if (p.block_rows > 0) return tile_conv2d_range(p, usage, begin, end);
#endif
  FlushDenormals flush;
  ProductBf16 products;
  const int64_t panels = panel_count(p.units), tiles = (bf16_rows(p) + p.row_tile - 1) / p.row_tile,
                depth = depth_of(p);
  float* product = scratch(0, kRowTile * kPanel);
  const bool in_place = reads_input(p) && depth % kDepthBlock == 0;
  uint16_t* gathered = nullptr;  // until a tile needs it
  const bool zones = has_zones(p);
  int32_t zone[kRowTile];
  const uint16_t* input = nullptr;
  int64_t stride = 0;
  int64_t current = -1;  // the tile that `input` and `zone` belong to
  for (int64_t task = begin; task < end; ++task) {
    const auto [tile, panel] = tile_task(task, tiles, panels, p.group);
    const int64_t unit = panel * kPanel;
    const int64_t row = tile * p.row_tile, rows = min_of(p.row_tile, bf16_rows(p) - row);
    if (tile != current) {
      const bool here = in_place && rows % kRowBlock == 0;
      if (!here && gathered == nullptr) gathered = gathered_rows(p.row_tile, depth);
      input = here ? p.input + row * p.stride_w : gathered;
      stride = here ? p.stride_w : gathered_stride(depth);
      if (!here) gather(p, pixel_at(p, row), rows, gathered, stride);
      if (zones) find_zones(p, pixel_at(p, row), rows, zone);
    }
    current = tile;
    const int64_t units = min_of(kPanel, p.units - unit);
    products.multiply(rows, padded_units(units), depth, input, stride, p.weight + unit * depth, product);
    EpilogueTileOf<uint16_t> t{};
    t.product = product;
    t.product_stride = kPanel;
    t.rows = rows;
    t.units = units;
    t.bias = p.bias == nullptr ? nullptr : p.bias + unit;
    t.zone = zones ? zone : nullptr;
    t.bias_stride = p.pixel_units;
    t.output = p.output + row * p.pixel_units + unit;
    t.output_stride = p.pixel_units;
    t.usage = usage == nullptr ? nullptr : usage + unit;
    t.usage_stride = padded_units(p.units);
    epilogue(t, p.activation);
  }
}

void bf16_plan(Bf16Params& p, [[maybe_unused]] int64_t threads) {
  // Weights that are too many for L2 had better be read once for several tiles, as far as their inputs fit, even if
  // those are gathered again for each panel.
  constexpr int64_t kManyWeights = 768 * 1024, kInputs = 512 * 1024;
  const bool many = p.units * depth_of(p) > kManyWeights;
  p.group = many ? max_of(1, kInputs / (p.row_tile * max_of(1, p.channels))) : 1;
  p.block_rows = 0;
#if defined(DYNPRUNE_TILES)
  plan_tile_conv2d(p, threads);
#endif
}

}  // namespace dynprune::DYNPRUNE_ISA
