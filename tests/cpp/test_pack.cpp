#include "check.h"

std::vector<float> pack(const dynprune::Kernels& kernels, const std::vector<float>& master, int64_t units,
                        const std::vector<int64_t>& columns) {
  const int64_t depth = static_cast<int64_t>(columns.size());
  dynprune::PackParams p{};
  p.master = master.data();
  p.row_stride = units == 0 ? 0 : static_cast<int64_t>(master.size()) / units;
  std::vector<int32_t> places(p.row_stride, -1);
  for (size_t k = 0; k < columns.size() && units > 0; ++k) places[columns[k]] = static_cast<int32_t>(k);
  p.places = places.data();
  p.units = units;
  p.depth = depth;
  p.taps = 1;
  Guarded<float> packed(depth * dynprune::padded_units(units)), in_order(depth * dynprune::padded_units(units));
  p.packed = packed.data();
  kernels.pack(p, 0, dynprune::pack_tasks(p));
  bool right = true, alike = true;
  if (depth == p.row_stride && std::is_sorted(columns.begin(), columns.end())) {  // all columns may be given by none
    p.places = nullptr;
    p.packed = in_order.data();
    kernels.pack(p, 0, dynprune::pack_tasks(p));
    for (int64_t i = 0; i < depth * dynprune::padded_units(units); ++i) alike = alike && packed[i] == in_order[i];
    alike = alike && in_order.intact();
  }
  for (int64_t u = 0; u < dynprune::padded_units(units); ++u) {
    const int64_t panel = u / dynprune::kPanel * dynprune::kPanel;
    const int64_t width = dynprune::padded_units(std::min(dynprune::kPanel, units - panel));
    for (int64_t k = 0; k < depth; ++k) {
      const float wanted = u < units ? master[u * p.row_stride + columns[k]] : 0.f;
      right = right && packed[panel * depth + k * width + u - panel] == wanted;
    }
  }
  const std::string what = std::string(kernels.isa) + " pack " + std::to_string(units) + "x" + std::to_string(depth);
  expect(right, what + ": values");
  expect(packed.intact(), what + ": guard zones");
  expect(alike, what + ": all columns");
  return {packed.data(), packed.data() + depth * dynprune::padded_units(units)};
}

namespace {

void test_columns(const dynprune::Kernels& kernels, int64_t units, int64_t columns) {
  const std::vector<float> master = random_floats(units * columns);
  std::vector<int64_t> chosen;
  for (int64_t c = 0; c < columns; ++c) {
    if (engine() % 3 != 0) chosen.push_back(c);
  }
  pack(kernels, master, units, chosen);
}

void test_tap_sums(const dynprune::Kernels& kernels, int64_t units, int64_t channels, int64_t taps) {
  const std::vector<float> weight = random_floats(units * channels * taps), values = random_floats(channels);
  std::vector<int64_t> rows;
  for (int64_t u = 0; u < units; u += 2) rows.push_back(u);
  std::vector<double> expected(rows.size() * taps, 0.0);
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int64_t j = 0; j < channels * taps; ++j) {
      expected[i * taps + j % taps] += double(weight[rows[i] * channels * taps + j]) * values[j / taps];
    }
  }
  Guarded<double> sums(static_cast<int64_t>(expected.size()));
  dynprune::PackParams p{};
  p.master = weight.data();
  p.row_stride = channels * taps;
  p.rows = rows.data();
  p.values = values.data();
  p.sums = sums.data();
  p.units = static_cast<int64_t>(rows.size());
  p.taps = taps;
  kernels.pack(p, 0, dynprune::pack_tasks(p));
  const std::string what =
      std::string(kernels.isa) + " tap sums " + std::to_string(channels) + "x" + std::to_string(taps);
  expect(close(sums, expected) && sums.intact(), what);
}

}  // namespace

void test_pack(const dynprune::Kernels& kernels) {
  for (int64_t columns : {1, 15, 16, 300, 517}) {
    for (int64_t units : {1, 8, 17, 64, 70}) test_columns(kernels, units, columns);
  }
  test_tap_sums(kernels, 5, 3, 1);
  test_tap_sums(kernels, 3, 37, 9);
  test_tap_sums(kernels, 1, 16, 25);
}
