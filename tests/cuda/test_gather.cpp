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

// Two rows and one column of a packed weight are exchanged for others; the rest stays.
void run_slots(const std::string& order) {
  Operand master = random_matrix(Number::bf16, 9, 8, 8);
  std::vector<int64_t> rows{0, 2, 3, 5, 8}, columns{0, 1, 4, 6};
  Operand packed(Number::bf16, 5 * 8);
  GatherParams p{};
  p.number = Number::bf16;
  p.from = master.data();
  p.row_stride = 8;
  p.column_stride = 1;
  p.taps = 1;
  p.to = packed.data();
  p.to_row_stride = 8;
  p.rows = rows.data();
  p.row_total = 5;
  p.columns = columns.data();
  p.column_total = 4;
  p.column_padding = 4;
  bool done = gather(p, nullptr) == 0;
  // Rows in slots 1 and 4 give way to 7 and 1, then the column in slot 2 to 5.
  const std::vector<int64_t> new_rows{7, 1}, row_slots{1, 4}, new_columns{5}, column_slots{2};
  rows[1] = 7, rows[4] = 1;
  p.rows = new_rows.data();
  p.row_slots = row_slots.data();
  p.row_total = 2;
  done = done && gather(p, nullptr) == 0;
  p.rows = rows.data();
  p.row_slots = nullptr;
  p.row_total = 5;
  p.columns = new_columns.data();
  p.column_slots = column_slots.data();
  p.column_total = 1;
  p.column_padding = 0;
  done = done && gather(p, nullptr) == 0;
  columns[2] = 5;
  bool right = done;
  for (int r = 0; r < 5; ++r) {
    for (int k = 0; k < 8; ++k) {
      right = right && packed.get(r * 8 + k) == (k < 4 ? master.values[rows[r] * 8 + columns[k]] : 0);
    }
  }
  expect(right, "gather " + order + ": slots");
}

}  // namespace

void test_gather() {
  for (const Orders& order : kOrders) {
    emulation::set_order(order.order, 17);
    run(order.name, Number::bf16, 7, 13, 9, 20, 17, false);
    run(order.name, Number::f16, 5, 20, 1, 5, 20, true);
    run(order.name, Number::f32, 3, 1, 4, 9, 3, true);
    run(order.name, Number::bf16, 4, 0, 3, 9, 3, false);
    run_slots(order.name);
  }
}
