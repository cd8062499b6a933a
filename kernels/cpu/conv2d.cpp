#include "conv2d.h"

#include "epilogue.h"
#include "gemm.h"
#include "kernels.h"
#include "scratch.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// Staging copies the taps a tile needs next to each other, so that the products run over all pixels of a tile without
// waste at the image's right border, at any stride and dilation:
//   direct   1x1, stride 1, no padding: the input is already in that form.
//   rows     staged[residue][q][out_w][kernel_w * channels]: input row first + q * stride_h + residue. One product per
//            kernel row; rows that successive output rows share are staged once.
//   patches  staged[pixel][kernel_h * kernel_w * channels]: one product per tile. For so few channels that the depth of
//            a kernel row would be too short for the product.
enum class Staging { direct, rows, patches };

constexpr int64_t kShortDepth = 24;

Staging staging_of(const Conv2dParams& p) {
  const bool pointwise =
      p.h.kernel == 1 && p.w.kernel == 1 && p.h.stride == 1 && p.w.stride == 1 && p.h.padding == 0 && p.w.padding == 0;
  if (pointwise && p.input_indices == nullptr && p.stride_c == 1 && p.stride_h == p.w.in * p.stride_w) {
    return Staging::direct;
  }
  return p.h.kernel > 1 && p.w.kernel * p.channels < kShortDepth ? Staging::patches : Staging::rows;
}

int64_t staged_rows(const Conv2dParams& p) {  // per residue
  return p.block_rows + (p.h.kernel - 1) * p.h.dilation / p.h.stride;
}

int64_t staged_floats(const Conv2dParams& p, Staging staging) {
  const int64_t row = p.w.out * p.w.kernel * p.channels;
  if (staging == Staging::patches) return p.block_rows * p.h.kernel * row;
  return p.h.stride * staged_rows(p) * row;
}

inline void copy(float* to, const float* from, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = from[i];
}

inline void zero(float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, Floats{});
  for (; i < n; ++i) to[i] = 0.f;
}

inline void copy_pixel(const Conv2dParams& p, const float* from, float* to) {
  if (p.input_indices != nullptr) {
    for (int64_t c = 0; c < p.channels; ++c) to[c] = from[p.input_indices[c] * p.stride_c];
  } else if (p.stride_c == 1) {
    copy(to, from, p.channels);
  } else {
    for (int64_t c = 0; c < p.channels; ++c) to[c] = from[c * p.stride_c];
  }
}

// The taps of kernel row `ih` for every output column; consecutive columns are `pitch` floats apart.
void stage_row(const Conv2dParams& p, const float* image, int64_t ih, float* to, int64_t pitch) {
  const int64_t width = p.w.kernel * p.channels;
  if (ih < 0 || ih >= p.h.in) {
    for (int64_t ow = 0; ow < p.w.out; ++ow) zero(to + ow * pitch, width);
    return;
  }
  const float* row = image + ih * p.stride_h;
  // All taps of a column are one run of memory where channels are last and tight, and columns adjacent.
  const bool run = p.input_indices == nullptr && p.stride_c == 1 && p.stride_w == p.channels && p.w.dilation == 1;
  for (int64_t ow = 0; ow < p.w.out; ++ow, to += pitch) {
    const int64_t first = ow * p.w.stride - p.w.padding;
    if (run && first >= 0 && first + p.w.kernel <= p.w.in) {
      copy(to, row + first * p.stride_w, width);
      continue;
    }
    for (int64_t kw = 0; kw < p.w.kernel; ++kw) {
      const int64_t iw = first + kw * p.w.dilation;
      if (iw < 0 || iw >= p.w.in) {
        zero(to + kw * p.channels, p.channels);
      } else {
        copy_pixel(p, row + iw * p.stride_w, to + kw * p.channels);
      }
    }
  }
}

void stage_block(const Conv2dParams& p, Staging staging, const float* image, int64_t first_row, int64_t rows,
                 float* staged) {
  const int64_t top = first_row * p.h.stride - p.h.padding;
  const int64_t width = p.w.kernel * p.channels, row_floats = p.w.out * width;
  if (staging == Staging::patches) {
    const int64_t depth = p.h.kernel * width;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
        stage_row(p, image, top + r * p.h.stride + kh * p.h.dilation, staged + r * p.w.out * depth + kh * width, depth);
      }
    }
    return;
  }
  const int64_t per_residue = staged_rows(p);
  for (int64_t residue = 0; residue < p.h.stride; ++residue) {
    int64_t needed = 0;
    for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
      if (kh * p.h.dilation % p.h.stride == residue) needed = rows + kh * p.h.dilation / p.h.stride;
    }
    for (int64_t q = 0; q < needed; ++q) {
      stage_row(p, image, top + q * p.h.stride + residue, staged + (residue * per_residue + q) * row_floats, width);
    }
  }
}

// product[pixels, width] for pixels [pixel, pixel + pixels) of the block and one panel of weights.
void multiply(const Conv2dParams& p, Staging staging, const float* staged, const float* panel, int64_t width,
              int64_t pixel, int64_t pixels, float* product) {
  if (staging == Staging::direct) {
    gemm_tile(pixels, width, p.channels, staged + pixel * p.stride_w, p.stride_w, panel, width, product, kPanel, false);
    return;
  }
  const int64_t row_depth = p.w.kernel * p.channels;
  if (staging == Staging::patches) {
    const int64_t depth = p.h.kernel * row_depth;
    gemm_tile(pixels, width, depth, staged + pixel * depth, depth, panel, width, product, kPanel, false);
    return;
  }
  const int64_t per_residue = staged_rows(p);
  for (int64_t kh = 0; kh < p.h.kernel; ++kh) {
    const int64_t shift = kh * p.h.dilation;
    const int64_t row = shift % p.h.stride * per_residue + shift / p.h.stride;
    gemm_tile(pixels, width, row_depth, staged + (row * p.w.out + pixel) * row_depth, row_depth,
              panel + kh * row_depth * width, width, product, kPanel, kh != 0);
  }
}

}  // namespace

// usage: [kUsageRows, padded_units(units)] of this range, added to; nullptr: not wanted.
void conv2d_range(const Conv2dParams& p, double* usage, int64_t begin, int64_t end) {
  FlushDenormals flush;
  const Staging staging = staging_of(p);
  const int64_t blocks = conv2d_blocks(p), depth = p.h.kernel * p.w.kernel * p.channels;
  const bool zoned = p.bias != nullptr && zone_count(p.h) * zone_count(p.w) > 1;
  float* product = scratch(0, kRowTile * kPanel);
  float* buffer = staging == Staging::direct ? nullptr : scratch(1, staged_floats(p, staging));
  int32_t* zone = zoned ? reinterpret_cast<int32_t*>(scratch(2, p.block_rows * p.w.out)) : nullptr;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, first = task % blocks * p.block_rows;
    const int64_t rows = min_of(p.block_rows, p.h.out - first);
    const float* image = p.input + n * p.stride_n;
    const float* staged = buffer;
    if (staging == Staging::direct) {
      staged = image + first * p.stride_h;
    } else {
      stage_block(p, staging, image, first, rows, buffer);
    }
    for (int64_t r = 0; zoned && r < rows; ++r) {
      const int64_t zone_h = zone_of(p.h, first + r) * zone_count(p.w);
      for (int64_t ow = 0; ow < p.w.out; ++ow) zone[r * p.w.out + ow] = static_cast<int32_t>(zone_h + zone_of(p.w, ow));
    }
    float* output = p.output + (n * p.h.out + first) * p.w.out * p.units;
    const int64_t pixels_of_block = rows * p.w.out;
    for (int64_t unit = 0; unit < p.units; unit += kPanel) {
      const int64_t units = min_of(kPanel, p.units - unit), width = padded_units(units);
      for (int64_t pixel = 0; pixel < pixels_of_block; pixel += kRowTile) {
        const int64_t pixels = min_of(kRowTile, pixels_of_block - pixel);
        multiply(p, staging, staged, p.weight + unit * depth, width, pixel, pixels, product);
        EpilogueTile t{};
        t.product = product;
        t.product_stride = kPanel;
        t.rows = pixels;
        t.units = units;
        t.bias = p.bias == nullptr ? nullptr : p.bias + unit;
        t.zone = zoned ? zone + pixel : nullptr;
        t.bias_stride = p.units;
        t.output = output + pixel * p.units + unit;
        t.output_stride = p.units;
        t.usage = usage == nullptr ? nullptr : usage + unit;
        t.usage_stride = padded_units(p.units);
        epilogue(t, p.activation);
      }
    }
  }
  gemm_release();
}

int64_t conv2d_block_rows(Conv2dParams p, int64_t threads) {
  constexpr int64_t kStagedFloats = 64 * 1024;
  const Staging staging = staging_of(p);
  p.block_rows = 1;
  const int64_t one = staged_floats(p, staging);
  p.block_rows = 2;
  const int64_t per_row = max_of(1, staged_floats(p, staging) - one);
  int64_t rows = staging == Staging::direct ? p.h.out : 1 + max_of(0, kStagedFloats - one) / per_row;
  if (p.batch < threads) {
    const int64_t share = (p.h.out * p.batch + threads - 1) / threads;
    rows = min_of(rows, max_of(1, share));
  }
  rows = max_of(rows, (kRowTile + p.w.out - 1) / p.w.out);  // at least one full tile
  // Equal blocks: five rows in blocks of four would be four and one.
  const int64_t blocks = (p.h.out + rows - 1) / rows;
  return max_of(1, (p.h.out + blocks - 1) / blocks);
}

}  // namespace dynprune::DYNPRUNE_ISA
