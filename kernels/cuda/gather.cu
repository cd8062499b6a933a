#include "gather.h"
#include "gemm.h"

namespace dynprune::cuda {

namespace {

// A block takes kThreads elements of one row of what is written.
template <Number number>
struct GatherKernel {
  typedef GatherParams Params;
  static constexpr int kThreads = 256, kBlocks = 4;

  static DYNPRUNE_DEVICE void run(const GatherParams& p) {
    const int64_t width = p.column_total + p.column_padding;
    const int64_t i = static_cast<int64_t>(block().y) * kThreads + thread(), tap = i / width, column = i - tap * width;
    if (tap >= p.taps) return;
    const int64_t row = block().x, from_row = p.rows == nullptr ? row : p.rows[row];
    const bool there = column < p.column_total;
    const int64_t from_column = there && p.columns != nullptr ? p.columns[column] : column;
    const int64_t to_column = there && p.column_slots != nullptr ? p.column_slots[column] : column;
    const int64_t from = from_row * p.row_stride + tap * p.tap_stride + from_column * p.column_stride;
    const int64_t to = row * p.to_row_stride + tap * p.to_tap_stride + to_column;
    if constexpr (element_bytes(number) == 4) {
      const float x = there ? static_cast<const float*>(p.from)[from] : 0.f;
      static_cast<float*>(p.to)[to] = p.scale == nullptr || !there ? x : x * p.scale[from_row];
    } else {
      uint16_t x = there ? static_cast<const uint16_t*>(p.from)[from] : 0;
      if (p.scale != nullptr && there) {
        const float wide = (number == Number::f16 ? from_f16(x) : from_bf16(x)) * p.scale[from_row];
        x = number == Number::f16 ? to_f16(wide) : to_bf16(wide);
      }
      static_cast<uint16_t*>(p.to)[to] = x;
    }
  }
};

}  // namespace

Status gather(const GatherParams& p, Stream stream) {
  const int64_t elements = p.taps * (p.column_total + p.column_padding);
  if (p.row_total == 0 || elements == 0) return 0;
  if (p.column_slots != nullptr && p.column_padding > 0) return kInvalidValue;
  const Grid grid{p.row_total, ceil_div(elements, GatherKernel<Number::f32>::kThreads), 1, 0};
  switch (p.number) {
    case Number::bf16: return launch<GatherKernel<Number::bf16>>(grid, p, stream);
    case Number::f16: return launch<GatherKernel<Number::f16>>(grid, p, stream);
    case Number::tf32:
    case Number::f32: return launch<GatherKernel<Number::f32>>(grid, p, stream);
  }
  return kInvalidValue;
}

}  // namespace dynprune::cuda
