#include "cuda/pack.h"

#include "cuda/context.h"
#include "cuda/gather.h"

namespace dynprune::cuda {

namespace {

int64_t padded_columns(const at::Tensor& t, int64_t columns) {
  return padded_depth(columns, number_of(t.scalar_type(), false));
}

int64_t count_or(const std::optional<at::Tensor>& list, int64_t all) { return list.has_value() ? list->numel() : all; }

// from [rows, taps, columns] in any strides -> to [rows, taps, padded columns].
void run_gather(const char* op, const at::Tensor& from, const std::optional<at::Tensor>& rows,
                const std::optional<at::Tensor>& columns, const std::optional<at::Tensor>& scale,
                const at::Tensor& to) {
  expect_device(op, "weight", from, at::kCUDA);
  const Context context(op, from);
  GatherParams p{};
  p.number = number_of(from.scalar_type(), false);
  p.from = from.const_data_ptr();
  p.row_stride = from.stride(0);
  p.tap_stride = from.stride(1);
  p.column_stride = from.stride(2);
  p.rows = rows.has_value() ? expect_index_list(op, "indices", *rows) : nullptr;
  p.columns = columns.has_value() ? expect_index_list(op, "columns", *columns) : nullptr;
  if (scale.has_value()) {
    expect_float(op, "scale", *scale, at::kCUDA);
    DYNPRUNE_EXPECT(scale->dim() == 1 && scale->size(0) == from.size(0) && scale->is_contiguous(), op,
                    c10::str("a scale [", from.size(0), "]"), scale->sizes());
    p.scale = scale->const_data_ptr<float>();
  }
  p.to = to.mutable_data_ptr();
  p.to_row_stride = to.stride(0);
  p.to_tap_stride = to.stride(1);
  p.row_total = count_or(rows, from.size(0));
  p.taps = from.size(1);
  p.column_total = count_or(columns, from.size(2));
  p.column_padding = to.size(2) - p.column_total;
  context.expect(gather(p, context.stream()));
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
    run_gather(kOp, own.flatten(2).transpose(1, 2), indices, input_indices, own_scale, storage.select(0, g));
  }
  return storage.view({copies, padded_units(units), kh, kw, storage.size(3)})
      .narrow(4, 0, channels)
      .permute({0, 2, 3, 4, 1});
}

at::Tensor gather_columns(const at::Tensor& rows, const at::Tensor& columns) {
  const at::Tensor flat = rows.reshape({-1, rows.size(-1)});
  const at::Tensor storage = at::empty({flat.size(0), 1, padded_columns(rows, columns.numel())}, rows.options());
  run_gather("gather_columns", flat.unsqueeze(1), std::nullopt, columns, std::nullopt, storage);
  return storage.squeeze(1).narrow(1, 0, columns.numel());
}

}  // namespace dynprune::cuda
