// gather: rows and columns of a tensor, packed as the kernels read them: compact weights from a master, or the active
// columns of a full-width input. With slots it writes each column where it belongs in a buffer of full capacity.
#pragma once

#include "types.h"

namespace dynprune::cuda {

struct GatherParams {
  Number number;     // tf32 counts as f32
  const void* from;  // element (row, tap, column) at row * row_stride + tap * tap_stride + column * column_stride
  int64_t row_stride, tap_stride, column_stride;
  const int64_t* rows;     // [row_total] rows of `from`; nullptr: as they lie
  const int64_t* columns;  // [column_total] columns of `from`; nullptr: as they lie
  const float* scale;      // [rows of `from`], multiplied in float32 before the one rounding; nullptr: none
  void* to;                // element (row, tap, column) at row * to_row_stride + tap * to_tap_stride + column
  int64_t to_row_stride, to_tap_stride;
  const int64_t* column_slots;  // [column_total] columns of `to`; nullptr: as they come
  int64_t row_total, taps, column_total;
  int64_t column_padding;  // columns of zeros behind the others, where they come in order
};

Status gather(const GatherParams& p, Stream stream);

}  // namespace dynprune::cuda
