#include "bfloat16.h"

#include "run.h"

namespace dynprune {

namespace {

// For each panel of `rows` [depth, width] and `pairs` (types.h): copy(its whole pairs of rows in both, as [depth / 2,
// 2, width]), and copy(the last row of an odd depth in both).
template <typename Copy>
void copy_panels(const at::Tensor& rows, const at::Tensor& pairs, int64_t depth, const Copy& copy) {
  const at::Tensor flat_rows = rows.view(-1), flat_pairs = pairs.view(-1);
  const int64_t padded = rows.size(-1), half = depth / 2;
  for (int64_t unit = 0; unit < padded; unit += kPanel) {
    const int64_t width = std::min(kPanel, padded - unit), start = unit * depth, whole = 2 * half * width;
    copy(flat_rows.narrow(0, start, whole).view({half, 2, width}),
         flat_pairs.narrow(0, start, whole).view({half, width, 2}).transpose(1, 2));
    const int64_t rest = depth % 2 * width;
    copy(flat_rows.narrow(0, start + whole, rest), flat_pairs.narrow(0, start + whole, rest));
  }
}

}  // namespace

at::Tensor paired(const at::Tensor& packed, int64_t depth) {
  at::Tensor result = at::empty(packed.sizes(), packed.options().dtype(at::kBFloat16));
  copy_panels(packed, result, depth, [](const at::Tensor& rows, const at::Tensor& pairs) { pairs.copy_(rows); });
  return result;
}

at::Tensor unpaired(const at::Tensor& packed, int64_t depth) {
  at::Tensor result = at::empty(packed.sizes(), packed.options().dtype(at::kFloat));
  copy_panels(result, packed, depth, [](const at::Tensor& rows, const at::Tensor& pairs) { rows.copy_(pairs); });
  return result;
}

void run_bf16(Bf16Params& p, const std::optional<at::Tensor>& usage) {
  p.row_tile = row_tile(bf16_rows(p), panel_count(p.units));
  kernels().bf16_plan(p, most_threads());
  const int64_t depth = p.h.kernel * p.w.kernel * p.channels;
  run_tasks(bf16_tasks(p), bf16_rows(p) * p.units * depth, p.units, usage,
            [&](double* sums, int64_t begin, int64_t end) { kernels().bf16(p, sums, begin, end); });
}

void run_bf16(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& bias, at::Tensor& output,
              const ActivationSpec& activation, const std::optional<at::Tensor>& usage) {
  const at::Tensor x = rows.dim() == 2 && rows.stride(1) == 1 ? rows : rows.contiguous();
  const int64_t count = c10::multiply_integers(rows.sizes().begin(), rows.sizes().end() - 1);
  Bf16Params p{};
  p.input = bits(x);
  p.stride_c = 1;
  p.stride_w = x.dim() == 2 ? x.stride(0) : x.size(-1);
  p.weight = bits(weight);
  p.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  p.output = bits(output);
  p.batch = 1;
  p.channels = x.size(-1);
  p.units = p.pixel_units = output.size(-1);
  p.h = {1, 1, 1, 1, 0, 1, 1, 1};
  p.w = {count, count, 1, 1, 0, 1, 1, 1};
  p.activation = activation;
  run_bf16(p, usage);
}

}  // namespace dynprune
