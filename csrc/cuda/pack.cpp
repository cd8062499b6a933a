// dynprune::gather_into on a GPU, and what the other ops pack for themselves. The schema stands in
// dynprune/ops/schemas.py.
#include "cuda/pack.h"

#include <torch/library.h>

#include <vector>

#include "cuda/context.h"
#include "cuda/gather.h"

namespace dynprune::cuda {

namespace {

int64_t padded_columns(const at::Tensor& t, int64_t columns) {
  return padded_depth(columns, number_of(t.scalar_type(), false));
}

int64_t count_or(const std::optional<at::Tensor>& list, int64_t all) { return list.has_value() ? list->numel() : all; }

// Rows and columns of [rows, taps, columns] in any strides; where they go is not said yet.
GatherParams gather_from(const char* op, const at::Tensor& from, const std::optional<at::Tensor>& rows,
                         const std::optional<at::Tensor>& columns, const std::optional<at::Tensor>& scale) {
  expect_device(op, "weight", from, at::kCUDA);
  GatherParams p{};
  p.number = number_of(from.scalar_type(), false);
  p.from = from.const_data_ptr();
  p.row_stride = from.stride(0);
  p.tap_stride = from.stride(1);
  p.column_stride = from.stride(2);
  p.rows = rows.has_value() ? expect_index_list(op, "indices", *rows) : nullptr;
  p.columns = columns.has_value() ? expect_index_list(op, "input_indices", *columns) : nullptr;
  if (scale.has_value()) {
    expect_float(op, "scale", *scale, at::kCUDA);
    DYNPRUNE_EXPECT(scale->dim() == 1 && scale->size(0) == from.size(0) && scale->is_contiguous(), op,
                    c10::str("a scale [", from.size(0), "]"), scale->sizes());
    p.scale = scale->const_data_ptr<float>();
  }
  p.row_total = count_or(rows, from.size(0));
  p.taps = from.size(1);
  p.column_total = count_or(columns, from.size(2));
  return p;
}

// from [rows, taps, columns] in any strides -> to [rows, taps, padded columns].
void run_gather(const char* op, const at::Tensor& from, const std::optional<at::Tensor>& rows,
                const std::optional<at::Tensor>& columns, const std::optional<at::Tensor>& scale,
                const at::Tensor& to) {
  GatherParams p = gather_from(op, from, rows, columns, scale);
  p.to = to.mutable_data_ptr();
  p.to_row_stride = to.stride(0);
  p.to_tap_stride = to.stride(1);
  p.column_padding = to.size(2) - p.column_total;
  const Context context(op, from);
  context.expect(gather(p, context.stream()));
}

// The kernel's taps of [out, in] or [out, in, kh, kw] as one dimension, [out, taps, in].
at::Tensor by_tap(const at::Tensor& weight) {
  return weight.dim() == 2 ? weight.unsqueeze(1) : weight.flatten(2).transpose(1, 2);
}

}  // namespace

at::Tensor pack_conv2d(const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                       const std::optional<at::Tensor>& input_indices, const std::optional<at::Tensor>& scale,
                       int64_t groups) {
  constexpr const char* kOp = "pack_conv2d";
  DYNPRUNE_EXPECT(weight.dim() == 4, kOp, "a weight [out, in, kh, kw]", weight.sizes());
  const int64_t copies = weight.size(1) == 1 ? 1 : groups;
  DYNPRUNE_EXPECT(groups > 0 && weight.size(0) % copies == 0, kOp,
                  c10::str("positive groups that divide ", weight.size(0), " units"), groups);
  DYNPRUNE_EXPECT(copies == 1 || (!indices.has_value() && !input_indices.has_value()), kOp,
                  "no index lists with groups", groups);
  const int64_t units = count_or(indices, weight.size(0)) / copies, per_group = weight.size(0) / copies;
  const int64_t channels = count_or(input_indices, weight.size(1)), kh = weight.size(2), kw = weight.size(3);
  const at::Tensor storage =
      at::empty({copies, padded_units(units), kh * kw, padded_columns(weight, channels)}, weight.options());
  for (int64_t g = 0; g < copies; ++g) {
    const at::Tensor own = weight.narrow(0, g * per_group, per_group);
    const std::optional<at::Tensor> own_scale =
        scale.has_value() ? std::optional(scale->narrow(0, g * per_group, per_group)) : std::nullopt;
    run_gather(kOp, by_tap(own), indices, input_indices, own_scale, storage.select(0, g));
  }
  return storage.view({copies, padded_units(units), kh, kw, storage.size(3)})
      .narrow(4, 0, channels)
      .permute({0, 2, 3, 4, 1});
}

void gather_into(at::Tensor to, const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                 const std::optional<at::Tensor>& input_indices, const std::optional<at::Tensor>& scale,
                 const std::optional<at::Tensor>& input_slots) {
  constexpr const char* kOp = "gather_into";
  const at::ScalarType type = weight.scalar_type();
  DYNPRUNE_EXPECT(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, kOp,
                  "a float32, float16 or bfloat16 weight", type);
  expect_device(kOp, "destination", to, at::kCUDA);
  DYNPRUNE_EXPECT(weight.dim() == 2 || weight.dim() == 4, kOp, "a weight [out, in] or [out, in, kh, kw]",
                  weight.sizes());
  const at::Tensor from = by_tap(weight);
  GatherParams p = gather_from(kOp, from, indices, input_indices, scale);
  std::vector<int64_t> room = weight.sizes().vec();
  room[0] = p.row_total;
  room[1] = input_slots.has_value() ? 0 : p.column_total;
  bool fits = to.dim() == weight.dim() && to.scalar_type() == type && to.device() == weight.device();
  for (int64_t i = 0; fits && i < to.dim(); ++i) {
    fits = i < 2 ? to.size(i) >= room[i] : to.size(i) == room[i];
  }
  DYNPRUNE_EXPECT(fits, kOp,
                  c10::str("room for a weight of at least ", at::IntArrayRef(room), ", ", type, ", on its device"),
                  to.sizes(), " ", to.scalar_type());
  // A view, unless the taps of `to` do not lie at one distance.
  const at::Tensor there = by_tap(to);
  const bool in_runs = there.data_ptr() == to.data_ptr() && (there.stride(2) == 1 || there.size(2) < 2);
  DYNPRUNE_EXPECT(in_runs, kOp, "inputs side by side in memory", to.strides());
  p.to = to.mutable_data_ptr();
  p.to_row_stride = there.stride(0);
  p.to_tap_stride = there.stride(1);
  if (input_slots.has_value()) {
    p.column_slots = expect_index_list(kOp, "input_slots", *input_slots);
    DYNPRUNE_EXPECT(input_slots->numel() == p.column_total, kOp, c10::str("input_slots [", p.column_total, "]"),
                    input_slots->sizes());
  }
  const Context context(kOp, weight);
  context.expect(gather(p, context.stream()));
}

at::Tensor gather_columns(const at::Tensor& rows, const at::Tensor& columns) {
  const at::Tensor flat = rows.reshape({-1, rows.size(-1)});
  const at::Tensor storage = at::empty({flat.size(0), 1, padded_columns(rows, columns.numel())}, rows.options());
  run_gather("gather_columns", flat.unsqueeze(1), std::nullopt, columns, std::nullopt, storage);
  return storage.squeeze(1).narrow(1, 0, columns.numel());
}

TORCH_LIBRARY_IMPL(dynprune, CUDA, m) { m.impl("gather_into", TORCH_FN(gather_into)); }

}  // namespace dynprune::cuda
