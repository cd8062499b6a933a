#include "pack.h"

#include <vector>

#include "bfloat16.h"
#include "cpu/sparse_input.h"
#include "output.h"
#include "run.h"

namespace dynprune {

namespace {

// Weights whose packed form is written past the caches. Reading it into them first would double the time.
constexpr int64_t kLarge = 256 * 1024;

void expect_weight(const char* op, const at::Tensor& weight) {
  DYNPRUNE_EXPECT(weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kBFloat16, op,
                  "a float32 or bfloat16 weight", weight.scalar_type());
  DYNPRUNE_EXPECT(weight.device().is_cpu(), op, "a weight on the CPU", weight.device());
}

void expect_scale(const char* op, const std::optional<at::Tensor>& scale, int64_t units) {
  if (!scale.has_value()) return;
  expect_float(op, "scale", *scale);
  DYNPRUNE_EXPECT(scale->dim() == 1 && scale->size(0) == units && scale->is_contiguous(), op,
                  c10::str("a scale [", units, "]"), scale->sizes());
}

// Where the elements of a master's row go in the packed depth; -1: nowhere. `columns` are distinct.
std::vector<int32_t> places_of(const std::vector<int64_t>& columns, int64_t row) {
  std::vector<int32_t> places(row, -1);
  for (size_t k = 0; k < columns.size(); ++k) places[columns[k]] = static_cast<int32_t>(k);
  return places;
}

// Where the sums of `PrunedInputs` go in the kernel's parameters.
void take_pruned(const char* op, PackParams& p, const PrunedInputs& pruned, at::Tensor& values) {
  if (!pruned.values.has_value()) return;
  expect_float(op, "values", *pruned.values);
  values = pruned.values->contiguous();
  const int64_t channels = values.numel();
  DYNPRUNE_EXPECT(values.dim() == 1 && channels > 0 && p.row_stride % channels == 0, op,
                  c10::str("values [n], n a divisor of ", p.row_stride), values.sizes());
  p.taps = p.row_stride / channels;
  const at::Tensor& sums = *pruned.sums;
  DYNPRUNE_EXPECT(sums.scalar_type() == at::kDouble && sums.is_contiguous() && sums.dim() == 2 &&
                      sums.size(0) == p.units && sums.size(1) == p.taps,
                  op, c10::str("contiguous float64 sums [", p.units, ", ", p.taps, "]"), sums.scalar_type(), " ",
                  sums.sizes());
  p.values = values.const_data_ptr<float>();
  p.sums = sums.mutable_data_ptr<double>();
}

void run_pack(const PackParams& p) {
  run_tasks(pack_tasks(p), p.units * p.row_stride * 4, p.units, std::nullopt,
            [&](double*, int64_t begin, int64_t end) { kernels().pack(p, begin, end); });
}

// `columns` null: all of them.
void pack_into(const char* op, const at::Tensor& weight, const std::optional<at::Tensor>& indices,
               const std::vector<int64_t>* columns, const std::optional<at::Tensor>& scale, const PrunedInputs& pruned,
               at::Tensor& packed) {
  const at::Tensor master = weight.to(at::kFloat).contiguous();
  at::Tensor values;
  PackParams p{};
  p.master = master.const_data_ptr<float>();
  p.row_stride = weight.numel() / std::max<int64_t>(1, weight.size(0));
  p.units = indices.has_value() ? indices->numel() : weight.size(0);
  p.rows = indices.has_value() ? expect_indices(op, "indices", *indices, weight.size(0)) : nullptr;
  take_pruned(op, p, pruned, values);
  expect_scale(op, scale, weight.size(0));
  if (p.units == 0) return;
  p.depth = columns == nullptr ? p.row_stride : static_cast<int64_t>(columns->size());
  std::vector<int32_t> places;
  if (columns != nullptr) {
    places = places_of(*columns, p.row_stride);
    p.places = places.data();
  }
  if (scale.has_value()) p.scale = scale->const_data_ptr<float>();
  p.packed = packed.mutable_data_ptr<float>();
  p.large = packed.numel() >= kLarge && reinterpret_cast<uintptr_t>(p.packed) % 64 == 0;
  run_pack(p);
}

}  // namespace

at::Tensor pack_linear(const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                       const std::optional<at::Tensor>& columns, const std::optional<at::Tensor>& scale,
                       const PrunedInputs& pruned) {
  const char* op = "pack_linear";
  expect_weight(op, weight);
  DYNPRUNE_EXPECT(weight.dim() == 2, op, "a weight [out, in]", weight.sizes());
  std::vector<int64_t> list;
  if (columns.has_value()) {
    DYNPRUNE_EXPECT(columns->dim() == 1 && columns->scalar_type() == at::kLong, op, "int64 columns [n]",
                    columns->scalar_type(), " ", columns->sizes());
    const at::Tensor tight = columns->contiguous();
    list.assign(tight.const_data_ptr<int64_t>(), tight.const_data_ptr<int64_t>() + tight.numel());
    std::vector<bool> seen(weight.size(1), false);
    for (int64_t c : list) {
      DYNPRUNE_EXPECT(c >= 0 && c < weight.size(1) && !seen[c], op,
                      c10::str("distinct columns in [0, ", weight.size(1), ")"), c);
      seen[c] = true;
    }
  }
  const int64_t units = indices.has_value() ? indices->numel() : weight.size(0);
  const int64_t depth = columns.has_value() ? columns->numel() : weight.size(1);
  at::Tensor packed = empty_output({1, depth, padded_units(units)}, weight.options().dtype(at::kFloat));
  pack_into(op, weight, indices, columns.has_value() ? &list : nullptr, scale, pruned, packed);
  return weight.scalar_type() == at::kBFloat16 ? paired(packed, depth) : packed;
}

at::Tensor pack_input_major(const at::Tensor& packed) {
  const char* op = "pack_input_major";
  expect_float(op, "weight", packed);
  DYNPRUNE_EXPECT(packed.dim() == 3 && packed.size(0) == 1 && packed.is_contiguous(), op,
                  "a packed weight [1, in, padded out]", packed.sizes());
  const int64_t depth = packed.size(1), units = packed.size(2), columns = input_major_units(units);
  at::Tensor major = empty_output({depth, columns}, packed.options());
  for (int64_t unit = 0; unit < units; unit += kPanel) {
    const int64_t width = std::min(kPanel, units - unit);
    major.narrow(1, unit, width).copy_(packed.view(-1).narrow(0, unit * depth, width * depth).view({depth, width}));
  }
  major.narrow(1, units, columns - units).zero_();
  return major;
}

at::Tensor pack_conv2d(const at::Tensor& weight, const std::optional<at::Tensor>& indices,
                       const std::optional<at::Tensor>& input_indices, const std::optional<at::Tensor>& scale,
                       int64_t groups, const PrunedInputs& pruned) {
  const char* op = "pack_conv2d";
  expect_weight(op, weight);
  DYNPRUNE_EXPECT(weight.dim() == 4, op, "a weight [out, in, kh, kw]", weight.sizes());
  if (groups != 1 && weight.size(1) != 1) {
    DYNPRUNE_EXPECT(groups > 0 && weight.size(0) > 0 && weight.size(0) % groups == 0, op,
                    c10::str("positive groups that divide ", weight.size(0), " units"), groups);
    DYNPRUNE_EXPECT(!indices.has_value() && !input_indices.has_value(), op, "no index lists with groups", groups);
    expect_scale(op, scale, weight.size(0));
    std::vector<at::Tensor> packed;
    const int64_t units = weight.size(0) / groups;
    for (int64_t first = 0; first < weight.size(0); first += units) {
      std::optional<at::Tensor> part_scale;
      if (scale.has_value()) part_scale = scale->narrow(0, first, units);
      packed.push_back(pack_conv2d(weight.narrow(0, first, units), std::nullopt, std::nullopt, part_scale));
    }
    return at::cat(packed);
  }
  const int64_t taps = weight.size(2) * weight.size(3);
  const int64_t* chosen =
      input_indices.has_value() ? expect_indices(op, "input_indices", *input_indices, weight.size(1)) : nullptr;
  const int64_t channels = input_indices.has_value() ? input_indices->numel() : weight.size(1);
  std::vector<int64_t> list;
  list.reserve(taps * channels);
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < channels; ++c) list.push_back((chosen == nullptr ? c : chosen[c]) * taps + tap);
  }
  const int64_t units = indices.has_value() ? indices->numel() : weight.size(0);
  at::Tensor packed = empty_output({1, weight.size(2), weight.size(3), channels, padded_units(units)},
                                   weight.options().dtype(at::kFloat));
  pack_into(op, weight, indices, &list, scale, pruned, packed);
  return weight.scalar_type() == at::kBFloat16 ? paired(packed, taps * channels) : packed;
}

at::Tensor tap_sums(const at::Tensor& weight, const at::Tensor& values, const std::optional<at::Tensor>& indices) {
  const char* op = "tap_sums";
  expect_float(op, "weight", weight);
  DYNPRUNE_EXPECT(weight.dim() == 4, op, "a weight [out, in, kh, kw]", weight.sizes());
  DYNPRUNE_EXPECT(values.dim() == 1 && values.size(0) == weight.size(1), op, c10::str("values [", weight.size(1), "]"),
                  values.sizes());
  const at::Tensor master = weight.contiguous();
  at::Tensor tight;
  PackParams p{};
  p.master = master.const_data_ptr<float>();
  p.row_stride = weight.numel() / std::max<int64_t>(1, weight.size(0));
  p.rows = indices.has_value() ? expect_indices(op, "indices", *indices, weight.size(0)) : nullptr;
  p.units = indices.has_value() ? indices->numel() : weight.size(0);
  const at::Tensor sums = at::empty({p.units, weight.size(2) * weight.size(3)}, weight.options().dtype(at::kDouble));
  if (sums.numel() == 0 || values.numel() == 0) return sums.zero_();
  take_pruned(op, p, {values, sums}, tight);
  run_pack(p);
  return sums;
}

}  // namespace dynprune
