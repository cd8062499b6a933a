#include "check.h"

namespace {

const LinearShape kLinear[] = {
    {0, 5, 3, 5, false},     {1, 1, 1, 1, false},   {8, 33, 15, 33, false},  {63, 20, 16, 20, false},
    {64, 16, 17, 19, false}, {65, 7, 63, 7, false}, {70, 13, 64, 13, false}, {257, 9, 65, 9, false},
    {5, 30, 130, 30, false}, {3, 0, 20, 4, false},  {140, 11, 70, 24, true}, {3, 7, 0, 7, false},
};

// The rows and columns of a master that lists name, or the first ones.
void test_master_linear(const dynprune::Kernels& kernels, const LinearShape& s, bool lists) {
  const std::string what = std::string(kernels.isa) + " master linear " + std::to_string(s.rows) + "x" +
                           std::to_string(s.depth) + "x" + std::to_string(s.units) + (s.gather ? " gathered" : "") +
                           (lists ? " lists" : "");
  std::vector<int64_t> columns, unit_rows;
  for (int64_t k = 0; k < s.depth; ++k) columns.push_back(lists || s.gather ? 2 * k : k);
  for (int64_t u = 0; u < s.units; ++u) unit_rows.push_back(lists ? 3 * u : u);
  const int64_t stride = s.depth == 0 ? 0 : columns.back() + 1, count = s.units == 0 ? 0 : unit_rows.back() + 1;
  Guarded<float> master(count * stride, 0.f), input(s.rows * s.input_stride, 0.f);
  std::ranges::copy(random_floats(count * stride), master.data());
  std::ranges::copy(random_floats(s.rows * s.input_stride), input.data());
  const std::vector<float> bias = random_floats(s.units);
  std::vector<double> expected;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t u = 0; u < s.units; ++u) {
      double sum = bias[u];
      for (int64_t k = 0; k < s.depth; ++k) {
        const int64_t from = s.gather ? columns[k] : k;
        sum += double(input[r * s.input_stride + from]) * master[unit_rows[u] * stride + columns[k]];
      }
      expected.push_back(std::max(sum, 0.0));
    }
  }
  dynprune::MasterLinearParams p{};
  p.input = input.data();
  p.input_stride = s.input_stride;
  p.input_indices = s.gather ? columns.data() : nullptr;
  p.master = master.data();
  p.master_stride = stride;
  p.unit_rows = lists ? unit_rows.data() : nullptr;
  p.columns = lists || s.gather ? columns.data() : nullptr;
  p.bias = bias.data();
  p.rows = s.rows;
  p.depth = s.depth;
  p.units = s.units;
  p.activation.kind = dynprune::Activation::relu;
  check(what, p, dynprune::master_linear_tasks(p), expected, kernels.master_linear);
}

}  // namespace

void test_linear(const dynprune::Kernels& kernels, const LinearShape& s) {
  const std::string what = std::string(kernels.isa) + " linear " + std::to_string(s.rows) + "x" +
                           std::to_string(s.depth) + "x" + std::to_string(s.units) + (s.gather ? " gathered" : "");
  const std::vector<float> input = random_floats(s.rows * s.input_stride), master = random_floats(s.units * s.depth);
  const std::vector<float> bias = random_floats(s.units);
  const std::vector<float> weight = pack(kernels, master, s.units, counting(s.depth));
  std::vector<int64_t> indices;  // every other column
  for (int64_t k = 0; k < s.depth; ++k) indices.push_back(s.gather ? 2 * k : k);
  std::vector<double> expected;
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t u = 0; u < s.units; ++u) {
      double sum = bias[u];
      for (int64_t k = 0; k < s.depth; ++k)
        sum += double(input[r * s.input_stride + indices[k]]) * master[u * s.depth + k];
      expected.push_back(std::max(sum, 0.0));
    }
  }
  dynprune::LinearParams p{};
  p.row_tile = s.rows > 8 ? dynprune::kRowTile : 8;
  p.group = 1;
  p.input = input.data();
  p.input_stride = s.input_stride;
  p.input_indices = s.gather ? indices.data() : nullptr;
  p.weight = weight.data();
  p.bias = bias.data();
  p.rows = s.rows;
  p.depth = s.depth;
  p.units = s.units;
  p.activation.kind = dynprune::Activation::relu;
  check(what, p, dynprune::linear_tasks(p), expected, kernels.linear);
  p.streamed = true;
  p.group = 2;
  check(what + " streamed", p, dynprune::linear_tasks(p), expected, kernels.linear);
}

void test_linear(const dynprune::Kernels& kernels) {
  for (const LinearShape& shape : kLinear) {
    test_linear(kernels, shape);
    for (bool lists : {false, true}) test_master_linear(kernels, shape, lists);
  }
}
