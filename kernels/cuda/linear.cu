#include "linear.h"
#include "plan.h"

namespace dynprune::cuda {

namespace {

struct LinearLaunch : LinearParams, ProductLaunch {};

template <class T, Number number>
struct LinearKernel : T {
  typedef LinearLaunch Params;

  static DYNPRUNE_DEVICE void run(const LinearLaunch& p) {
    constexpr int kBytes = element_bytes(number), kStep = T::kThreads / kSlabChunks;
    const int64_t row = static_cast<int64_t>(block().x) * T::kRows, unit = static_cast<int64_t>(block().y) * T::kUnits;
    const int64_t units = counted(p.units, p.unit_count), depth = counted(p.depth, p.depth_count);
    if (unit >= units) return;  // all of the block: nobody waits for it
    const int slabs = static_cast<int>(ceil_div(depth * kBytes, kSlabBytes)), part = block().z;
    const int own = thread() / kSlabChunks;

    const char* const input = static_cast<const char*>(p.input);
    MatrixRows<T::kRowCopies> rows{input, {}, depth * kBytes, is_aligned(p.input, p.input_stride * kBytes)};
    DYNPRUNE_UNROLL
    for (int i = 0; i < T::kRowCopies; ++i) {
      const int64_t r = row + own + i * kStep;
      rows.row[i] = r < p.rows ? input + r * p.input_stride * kBytes : nullptr;
    }
    const char* const weight = static_cast<const char*>(p.weight);
    MatrixRows<T::kUnitCopies> weights{weight, {}, depth * kBytes, is_aligned(p.weight, p.weight_stride * kBytes)};
    DYNPRUNE_UNROLL
    for (int i = 0; i < T::kUnitCopies; ++i) {
      const int64_t u = unit + own + i * kStep;
      const int64_t from = u < units && p.indices != nullptr ? p.indices[u] : u;
      weights.row[i] = u < units ? weight + from * p.weight_stride * kBytes : nullptr;
    }

    Sums<T> sums;
    multiply_slabs<T, number>(sums, rows, weights, part_begin(part, p.split.parts, slabs),
                              part_begin(part + 1, p.split.parts, slabs));
    share_product<T>(sums, reinterpret_cast<float*>(shared()));
    const int64_t tile = block().y * ceil_div(p.rows, T::kRows) + block().x;
    if (!gather_parts<T>(p.split, tile, part)) return;
    finish<T, number>(p.epilogue, block().x, row, at_most(T::kRows, p.rows - row), unit,
                      at_most(T::kUnits, units - unit), nullptr);
  }
};

}  // namespace

ProductPlan linear_plan(const LinearParams& p, int multiprocessors) {
  return divide(p.rows, p.units, p.depth * element_bytes(p.number), p.usage != nullptr, multiprocessors);
}

Status linear(const LinearParams& p, const ProductPlan& plan, Stream stream) {
  if (p.rows == 0 || p.units == 0) return 0;
  const Epilogue epilogue{p.bias,        p.units,      p.indices, p.output, p.output_stride,
                          p.wide_output, p.activation, {},        0,        {}};
  const LinearLaunch l{p, prepare_product(p, plan, epilogue)};
  const Status status = launch_product<LinearKernel>(p.number, plan, l, stream);
  return status != 0 ? status : finish_product(p, plan, l, stream);
}

}  // namespace dynprune::cuda
