#include "check.h"
#include "cuda/gather.h"

namespace {

using namespace check;
using namespace dynprune;
using namespace dynprune::cuda;

// A master [out, in, taps] as PyTorch has it, to [n, taps, columns], channels contiguous.
void run(const std::string& order, Number number, int64_t rows, int64_t columns, int64_t taps, int64_t out, int64_t in,
         bool scaled) {
  const std::string what = "gather " + order + ", " + name(number) + ", " + std::to_string(rows) + " of " +
                           std::to_string(out) + " rows, " + std::to_string(columns) + " of " + std::to_string(in) +
                           " columns, " + std::to_string(taps) + " taps";
  Operand master = random_matrix(number, out, in * taps, in * taps);
  const std::vector<int64_t> picked_rows = subset(out, rows), picked_columns = subset(in, columns);
  std::vector<float> scale = random_floats(out);
  GatherParams p{};
  p.number = number;
  p.from = master.data();
  p.row_stride = in * taps;
  p.tap_stride = 1;
  p.column_stride = taps;
  p.rows = picked_rows.data();
  p.columns = picked_columns.data();
  p.scale = scaled ? scale.data() : nullptr;
  p.to_tap_stride = padded_depth(columns, number);
  p.to_row_stride = taps * p.to_tap_stride;
  Operand packed(number, rows * p.to_row_stride);
  p.to = packed.data();
  p.row_total = rows;
  p.taps = taps;
  p.column_total = columns;
  p.column_padding = p.to_tap_stride - columns;
  expect(gather(p, nullptr) == 0, what + ": " + emulation::error());
  std::vector<double> expected, actual;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t k = 0; k < p.to_tap_stride; ++k) {
        const double factor = scaled ? scale[picked_rows[r]] : 1;
        expected.push_back(k < columns ? factor * master.values[(picked_rows[r] * in + picked_columns[k]) * taps + tap]
                                       : 0);
        actual.push_back(packed.get((r * taps + tap) * p.to_tap_stride + k));
      }
    }
  }
  expect(close(actual, expected, scaled ? tolerance(number) : 0), what + ": values");
}

// The columns go to their slots in rows of full capacity; what lies between stays.
void run_slots(const std::string& order, Number number, int64_t taps) {
  const int64_t rows = 6, columns = 7, in = 11, width = 24;
  Operand master = random_matrix(number, rows, in * taps, in * taps);
  const std::vector<int64_t> picked = subset(in, columns), slots{0, 1, 2, 3, 16, 17, 18};
  Operand packed = random_matrix(number, rows, taps * width, taps * width);
  std::vector<double> expected;
  for (int64_t i = 0; i < rows * taps * width; ++i) expected.push_back(packed.get(i));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t k = 0; k < columns; ++k) {
        expected[(r * taps + tap) * width + slots[k]] = master.values[(r * in + picked[k]) * taps + tap];
      }
    }
  }
  GatherParams p{};
  p.number = number;
  p.from = master.data();
  p.row_stride = in * taps;
  p.tap_stride = 1;
  p.column_stride = taps;
  p.columns = picked.data();
  p.column_slots = slots.data();
  p.to = packed.data();
  p.to_row_stride = taps * width;
  p.to_tap_stride = width;
  p.row_total = rows;
  p.taps = taps;
  p.column_total = columns;
  const bool done = gather(p, nullptr) == 0;
  std::vector<double> actual;
  for (int64_t i = 0; i < rows * taps * width; ++i) actual.push_back(packed.get(i));
  expect(done && close(actual, expected, 0), "gather " + order + ", " + name(number) + ": slots");
}

}  // namespace

void test_gather() {
  for (const Orders& order : kOrders) {
    emulation::set_order(order.order, 17);
    run(order.name, Number::bf16, 7, 13, 9, 20, 17, false);
    run(order.name, Number::f16, 5, 20, 1, 5, 20, true);
    run(order.name, Number::f32, 3, 1, 4, 9, 3, true);
    run(order.name, Number::bf16, 4, 0, 3, 9, 3, false);
    run_slots(order.name, Number::bf16, 9);
    run_slots(order.name, Number::f32, 1);
  }
}
