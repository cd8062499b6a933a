#include <algorithm>

#include "lstm.h"
#include "plan.h"

namespace dynprune::cuda {

namespace {

constexpr int kTileUnits = 16;  // of a block: 64 columns of gates

struct LstmLaunch : LstmParams {
  LstmPlan plan;
  unsigned* counters;  // [directions, row_tiles]: arrivals of the blocks that wait for one another
  char* states;        // [2, directions, batch, state_stride]: hidden states, in turns
  float* cells;        // [directions, batch, state_stride]
  double* partial;     // usage of each row tile, [row_tiles, kUsageRows, total]
  int64_t begin, end;  // steps of this launch
};

DYNPRUNE_DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

template <Number number>
DYNPRUNE_DEVICE void put(void* p, int64_t at, float x) {
  if constexpr (element_bytes(number) == 4) {
    static_cast<float*>(p)[at] = x;
  } else {
    static_cast<uint16_t*>(p)[at] = to_half<number>(x);
  }
}

template <Number number>
DYNPRUNE_DEVICE float get(const void* p, int64_t at) {
  if constexpr (element_bytes(number) == 4) {
    return static_cast<const float*>(p)[at];
  } else {
    const uint16_t half = static_cast<const uint16_t*>(p)[at];
    return number == Number::f16 ? from_f16(half) : from_bf16(half);
  }
}

// Who multiplies the hidden states with the recurrent weights, and when: blocks that stay for all steps; a launch for
// each step; or a library, in front of such a launch.
enum class Product { resident, streamed, given };

// A block has kRows sequences and 16 units. Its threads keep one unit each, and every kStep-th row of it.
template <class T, Number number, Product kind>
struct LstmKernel : T {
  static constexpr bool persistent = kind == Product::resident;
  typedef LstmLaunch Params;
  static constexpr int kBytes = element_bytes(number), kStep = T::kThreads / kTileUnits;
  static constexpr int kOwn = T::kRows / kStep;  // rows of a thread
  static_assert(T::kUnits == 4 * kTileUnits && kOwn * kStep == T::kRows);

  struct Place {
    const LstmDirection* direction;
    int index;              // of the direction
    int64_t row, unit;      // first of the block
    int64_t units;          // of the direction
    int rows, tile;         // of the block
    int own_unit, own_row;  // of the thread, in the block
  };

  static DYNPRUNE_DEVICE int64_t length(const LstmLaunch& p, int64_t row) {
    return p.lengths == nullptr ? p.steps : p.lengths[row];
  }

  // Rows of the hidden state that step `step` reads.
  static DYNPRUNE_DEVICE MatrixRows<T::kRowCopies> state_rows(const LstmLaunch& p, const Place& at, int64_t step) {
    const char* from = p.states + (((step + 1) % 2 * p.directions + at.index) * p.batch) * p.plan.state_stride * kBytes;
    int64_t stride = p.plan.state_stride * kBytes;
    if (step == 0) {
      from = static_cast<const char*>(p.hidden) + at.direction->offset * kBytes;
      stride = p.total * kBytes;
    }
    MatrixRows<T::kRowCopies> rows{from, {}, at.units * kBytes, is_aligned(from, stride)};
    DYNPRUNE_UNROLL
    for (int i = 0; i < T::kRowCopies; ++i) {
      const int r = thread() / kSlabChunks + i * (T::kThreads / kSlabChunks);
      rows.row[i] = r < at.rows ? from + (at.row + r) * stride : nullptr;
    }
    return rows;
  }

  static DYNPRUNE_DEVICE MatrixRows<T::kUnitCopies> weight_rows(const Place& at) {
    const LstmDirection& d = *at.direction;
    const char* const from = static_cast<const char*>(d.weight);
    MatrixRows<T::kUnitCopies> rows{from, {}, at.units * kBytes, is_aligned(d.weight, d.weight_stride * kBytes)};
    DYNPRUNE_UNROLL
    for (int i = 0; i < T::kUnitCopies; ++i) {
      const int64_t u = 4 * at.unit + thread() / kSlabChunks + i * (T::kThreads / kSlabChunks);
      rows.row[i] = u < 4 * at.units ? from + u * d.weight_stride * kBytes : nullptr;
    }
    return rows;
  }

  // What the hidden states add to the gates, in shared memory: float [kRows][kProductStride].
  static DYNPRUNE_DEVICE const float* multiply_states(const LstmLaunch& p, const Place& at, int64_t step) {
    const int slabs = static_cast<int>(ceil_div(at.units * kBytes, kSlabBytes));
    const auto rows = state_rows(p, at, step);
    Sums<T> sums;
    if constexpr (persistent) {
      char* const weights = shared();
      char* const states = weights + slabs * T::kUnits * kSlabBytes;
      float* const product = reinterpret_cast<float*>(states + slabs * T::kRows * kSlabBytes);
      DYNPRUNE_NO_UNROLL
      for (int slab = 0; slab < slabs; ++slab) {
        copy_slab<T::kThreads, T::kRowCopies, kBytes>(states + slab * T::kRows * kSlabBytes, rows, slab);
      }
      commit_copies();
      wait_copies<0>();
      sync();
      clear<T>(sums);
      DYNPRUNE_NO_UNROLL
      for (int slab = 0; slab < slabs; ++slab) {
        multiply_slab<T, number>(sums, states + slab * T::kRows * kSlabBytes, weights + slab * T::kUnits * kSlabBytes);
      }
      share_product<T>(sums, product);
      return product;
    } else {
      multiply_slabs<T, number>(sums, rows, weight_rows(at), 0, slabs);
      share_product<T>(sums, reinterpret_cast<float*>(shared()));
      return reinterpret_cast<const float*>(shared());
    }
  }

  struct Totals {
    double magnitude = 0, total = 0, square = 0, count = 0;
  };

  // Gates to states for the thread's unit and rows.
  // product: of the block's rows and units, rows `product_stride` apart; nullptr: zero.
  static DYNPRUNE_DEVICE void update(const LstmLaunch& p, const Place& at, int64_t step, const float* product,
                                     int64_t product_stride, float (&cell)[kOwn], Totals& totals) {
    const LstmDirection& d = *at.direction;
    const int64_t unit = at.unit + at.own_unit;
    if (unit >= at.units) return;
    const float* const biases = (step == 0 ? d.bias_first : d.bias) + unit;
    char* const next = p.states + ((step % 2 * p.directions + at.index) * p.batch) * p.plan.state_stride * kBytes;
    DYNPRUNE_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int r = at.own_row + i * kStep;
      if (r >= at.rows) continue;
      const int64_t row = at.row + r, most = length(p, row);
      if (step >= most) continue;
      const int64_t t = d.reverse ? most - 1 - step : step;
      const Float4 in =
          *reinterpret_cast<const Float4*>(d.gates + t * p.gates_stride_t + row * p.gates_stride_b + 4 * unit);
      float gate[4] = {in.x, in.y, in.z, in.w};
      DYNPRUNE_UNROLL
      for (int g = 0; g < 4; ++g) {
        gate[g] += biases[g * d.units];
        if (product != nullptr) gate[g] += product[r * product_stride + 4 * at.own_unit + g];
        if (step == 0 && d.first != nullptr) gate[g] += d.first[row * d.first_stride + g * d.units + unit];
      }
      cell[i] = sigmoid(gate[1]) * cell[i] + sigmoid(gate[0]) * tanhf(gate[2]);
      const float h = sigmoid(gate[3]) * tanhf(cell[i]);
      put<number>(next, row * p.plan.state_stride + unit, h);
      put<number>(p.output, t * p.output_stride_t + row * p.output_stride_b + d.offset + unit, h);
      if (step == most - 1) {
        put<number>(p.last_hidden, row * p.total + d.offset + unit, h);
        put<number>(p.last_cell, row * p.total + d.offset + unit, cell[i]);
      }
      if (!(fabsf(h) < INFINITY)) continue;  // NaN never enters
      totals.magnitude += fabsf(h);
      totals.total += h;
      totals.square += h * h;
      totals.count += 1;
    }
  }

  // Cells at the beginning of a launch: given, zero, or where the launch before left them. Rows without any step end
  // here, and what lies behind a sequence's end is zero.
  static DYNPRUNE_DEVICE void begin_cells(const LstmLaunch& p, const Place& at, float (&cell)[kOwn]) {
    const LstmDirection& d = *at.direction;
    const int64_t unit = at.unit + at.own_unit;
    DYNPRUNE_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int r = at.own_row + i * kStep;
      cell[i] = 0.f;
      if (r >= at.rows || unit >= at.units) continue;
      const int64_t row = at.row + r, state = row * p.total + d.offset + unit;
      if (p.begin > 0) {
        cell[i] = p.cells[(at.index * p.batch + row) * p.plan.state_stride + unit];
        continue;
      }
      if (p.cell != nullptr) cell[i] = get<number>(p.cell, state);
      const int64_t most = length(p, row);
      if (most == 0) {
        put<number>(p.last_hidden, state, p.hidden == nullptr ? 0.f : get<number>(p.hidden, state));
        put<number>(p.last_cell, state, cell[i]);
      }
      DYNPRUNE_NO_UNROLL
      for (int64_t t = most; t < p.steps; ++t) {
        put<number>(p.output, t * p.output_stride_t + row * p.output_stride_b + d.offset + unit, 0.f);
      }
    }
  }

  static DYNPRUNE_DEVICE void end_cells(const LstmLaunch& p, const Place& at, const float (&cell)[kOwn]) {
    const int64_t unit = at.unit + at.own_unit;
    DYNPRUNE_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int r = at.own_row + i * kStep;
      if (r >= at.rows || unit >= at.units) continue;
      p.cells[(at.index * p.batch + at.row + r) * p.plan.state_stride + unit] = cell[i];
    }
  }

  // Adds the usage of the block's units to that of its row tile, which no other block writes.
  static DYNPRUNE_DEVICE void end_usage(const LstmLaunch& p, const Place& at, const Totals& totals) {
    double* const sums = reinterpret_cast<double*>(shared());  // [kUsageRows][kStep][kTileUnits]
    const double own[kUsageRows] = {totals.magnitude, totals.total, totals.square, totals.count};
    sync();  // nobody reads what lay here
    DYNPRUNE_UNROLL
    for (int i = 0; i < kUsageRows; ++i) sums[(i * kStep + at.own_row) * kTileUnits + at.own_unit] = own[i];
    sync();
    const int unit = thread() % kTileUnits, i = thread() / kTileUnits;
    if (i >= kUsageRows || at.unit + unit >= at.units) return;
    double sum = 0;
    DYNPRUNE_NO_UNROLL
    for (int from = 0; from < kStep; ++from) sum += sums[(i * kStep + from) * kTileUnits + unit];
    double* const to =
        p.partial + (static_cast<int64_t>(at.tile) * kUsageRows + i) * p.total + at.direction->offset + at.unit + unit;
    *to = p.begin > 0 ? *to + sum : sum;
  }

  // Until all blocks of the same rows and direction have finished the step. The last time it leaves the counter zero.
  static DYNPRUNE_DEVICE void meet(unsigned* counter, unsigned blocks, int64_t arrival, bool last) {
    sync();
    if (thread() == 0) {
      const unsigned before = increment(counter);
      if (!last) {
        await(counter, blocks * static_cast<unsigned>(arrival));
      } else if (before + 1 == blocks * static_cast<unsigned>(arrival)) {
        *counter = 0;
      }
    }
    sync();
  }

  static DYNPRUNE_DEVICE void run(const LstmLaunch& p) {
    Place at;
    at.index = block().z;
    at.direction = &p.direction[at.index];
    at.tile = block().x;
    at.row = static_cast<int64_t>(at.tile) * T::kRows;
    at.rows = at_most(T::kRows, p.batch - at.row);
    at.unit = static_cast<int64_t>(block().y) * kTileUnits;
    at.units = counted(at.direction->units, at.direction->unit_count);
    at.own_unit = thread() % kTileUnits;
    at.own_row = thread() / kTileUnits;
    if (at.unit >= at.units) return;  // all of the block, and nobody counts on it
    const unsigned blocks = static_cast<unsigned>(ceil_div(at.units, kTileUnits));
    if constexpr (persistent) {
      const auto weights = weight_rows(at);
      const int slabs = static_cast<int>(ceil_div(at.units * kBytes, kSlabBytes));
      DYNPRUNE_NO_UNROLL
      for (int slab = 0; slab < slabs; ++slab) {
        copy_slab<T::kThreads, T::kUnitCopies, kBytes>(shared() + slab * T::kUnits * kSlabBytes, weights, slab);
      }
      commit_copies();
    }
    float cell[kOwn];
    begin_cells(p, at, cell);
    Totals totals;
    int64_t end = 0;  // the longest of the block's sequences
    for (int r = 0; r < at.rows; ++r) end = end < length(p, at.row + r) ? length(p, at.row + r) : end;
    end = end < p.end ? end : p.end;
    DYNPRUNE_NO_UNROLL
    for (int64_t step = p.begin; step < end; ++step) {
      const float* product = nullptr;
      int64_t product_stride = T::kProductStride;
      if (step > 0 || p.hidden != nullptr) {
        if constexpr (kind == Product::given) {
          product_stride = 4 * at.direction->units;
          product = at.direction->product + at.row * product_stride + 4 * at.unit;
        } else {
          product = multiply_states(p, at, step);
        }
      }
      update(p, at, step, product, product_stride, cell, totals);
      if constexpr (persistent) {
        meet(p.counters + at.index * p.plan.row_tiles + at.tile, blocks, step + 1, step + 1 == end);
      }
    }
    wait_copies<0>();
    if constexpr (!persistent) end_cells(p, at, cell);
    if (p.usage != nullptr) end_usage(p, at, totals);
  }
};

template <class T, Product kind>
Status launch_steps(const LstmLaunch& p, Stream stream) {
  const Grid grid{p.plan.row_tiles, p.plan.unit_tiles, p.directions, p.plan.shared_bytes, kind == Product::resident};
  switch (p.number) {
    case Number::bf16: return launch<LstmKernel<T, Number::bf16, kind>>(grid, p, stream);
    case Number::f16: return launch<LstmKernel<T, Number::f16, kind>>(grid, p, stream);
    case Number::tf32: return launch<LstmKernel<T, Number::tf32, kind>>(grid, p, stream);
    case Number::f32: return launch<LstmKernel<T, Number::f32, kind>>(grid, p, stream);
  }
  return kInvalidValue;
}

int64_t most_units(const LstmParams& p) {
  int64_t units = 0;
  for (int64_t d = 0; d < p.directions; ++d) units = std::max(units, p.direction[d].units);
  return units;
}

// Sizes of the workspace.
void lay_out(LstmPlan& plan, const LstmParams& p, int64_t units) {
  plan.state_stride = padded_depth(units, p.number);
  plan.counter_bytes = ceil_div(p.directions * plan.row_tiles * 4, 256) * 256;
  plan.state_bytes = 2 * p.directions * p.batch * plan.state_stride * element_bytes(p.number);
  plan.state_bytes = ceil_div(plan.state_bytes, 256) * 256;
  plan.cell_bytes = plan.persistent ? 0 : ceil_div(p.directions * p.batch * plan.state_stride * 4, 256) * 256;
  plan.usage_bytes = p.usage == nullptr ? 0 : plan.row_tiles * kUsageRows * p.total * 8;
}

LstmLaunch launch_of(const LstmParams& p, const LstmPlan& plan) {
  char* const workspace = static_cast<char*>(p.workspace);
  LstmLaunch l{p, plan, reinterpret_cast<unsigned*>(workspace), workspace + plan.counter_bytes, nullptr, nullptr, 0, 0};
  l.cells = reinterpret_cast<float*>(l.states + plan.state_bytes);
  l.partial = reinterpret_cast<double*>(l.states + plan.state_bytes + plan.cell_bytes);
  return l;
}

}  // namespace

LstmPlan lstm_plan(const LstmParams& p, int multiprocessors, int shared_limit) {
  LstmPlan plan{};
  const int64_t units = most_units(p);
  const int64_t slabs = ceil_div(units * element_bytes(p.number), kSlabBytes);
  plan.unit_tiles = ceil_div(units, kTileUnits);
  auto fits = [&]<class T>(TileShape shape, T) {
    plan.shape = shape;
    plan.row_tiles = ceil_div(p.batch, T::kRows);
    const int64_t bytes = slabs * (T::kRows + T::kUnits) * kSlabBytes + T::kProductBytes;
    plan.shared_bytes = static_cast<int>(std::min<int64_t>(bytes, shared_limit));
    plan.persistent = bytes <= shared_limit && p.directions * plan.row_tiles * plan.unit_tiles <= multiprocessors;
    return plan.persistent;
  };
  // Flat tiles spread a step over more multiprocessors.
  if (!fits(TileShape::flat, FlatTile{}) && !fits(TileShape::small, SmallTile{})) {
    plan.shared_bytes = SmallTile::kSharedBytes;
  }
  lay_out(plan, p, units);
  return plan;
}

LstmPlan lstm_step_plan(const LstmParams& p) {
  LstmPlan plan{};
  const int64_t units = most_units(p);
  plan.shape = TileShape::flat;
  plan.row_tiles = ceil_div(p.batch, FlatTile::kRows);
  plan.unit_tiles = ceil_div(units, kTileUnits);
  plan.shared_bytes = kUsageRows * FlatTile::kThreads * static_cast<int>(sizeof(double));  // usage sums
  lay_out(plan, p, units);
  return plan;
}

Status lstm(const LstmParams& p, const LstmPlan& plan, Stream stream) {
  if (p.batch == 0 || p.total == 0) return 0;
  LstmLaunch l = launch_of(p, plan);
  Status status = 0;
  if (plan.persistent) {
    l.end = p.steps;
    status = plan.shape == TileShape::flat ? launch_steps<FlatTile, Product::resident>(l, stream)
                                           : launch_steps<SmallTile, Product::resident>(l, stream);
  } else {
    // At least one launch, which writes the states of sequences without any step.
    for (int64_t step = 0; status == 0 && step < std::max<int64_t>(1, p.steps); ++step) {
      l.begin = step;
      l.end = std::min(step + 1, p.steps);
      status = launch_steps<SmallTile, Product::streamed>(l, stream);
    }
  }
  return status == 0 ? lstm_end(p, plan, stream) : status;
}

void* lstm_state(const LstmParams& p, const LstmPlan& plan, int64_t step, int64_t direction) {
  const int64_t row = ((step + 1) % 2 * p.directions + direction) * p.batch;
  return launch_of(p, plan).states + row * plan.state_stride * element_bytes(p.number);
}

Status lstm_step(const LstmParams& p, const LstmPlan& plan, int64_t step, Stream stream) {
  LstmLaunch l = launch_of(p, plan);
  l.begin = step;
  l.end = std::min(step + 1, p.steps);
  return launch_steps<FlatTile, Product::given>(l, stream);
}

Status lstm_end(const LstmParams& p, const LstmPlan& plan, Stream stream) {
  const double* const partial = launch_of(p, plan).partial;
  Status status = 0;
  for (int64_t d = 0; status == 0 && p.usage != nullptr && d < p.directions; ++d) {
    const LstmDirection& own = p.direction[d];
    status = reduce_usage({partial + own.offset, p.total, plan.row_tiles, p.usage + own.offset, p.usage_stride,
                           own.units, own.unit_count},
                          stream);
  }
  return status;
}

}  // namespace dynprune::cuda
