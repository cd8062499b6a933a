#include "gemm.h"
#include "usage.h"

namespace dynprune::cuda {

namespace {

// A block takes one of the sums of 32 units, a warp every kWarps-th tile of them, several at once.
struct UsageKernel {
  typedef UsageParams Params;
  static constexpr int kWarps = 32, kThreads = 32 * kWarps, kBlocks = 1, kAhead = 8;
  static constexpr int kSharedBytes = kWarps * 32 * 8;

  static DYNPRUNE_DEVICE void run(const UsageParams& p) {
    const int lane = thread() % 32, warp = thread() / 32, row = block().y;
    const int64_t unit = static_cast<int64_t>(block().x) * 32 + lane;
    const bool there = unit < counted(p.units, p.unit_count);
    const int64_t step = kUsageRows * p.partial_stride;
    const double* const from = p.partial + row * p.partial_stride + unit;
    double* const sums = reinterpret_cast<double*>(shared());  // [kWarps][32]
    double sum = 0;
    DYNPRUNE_NO_UNROLL
    for (int64_t tile = warp; tile < p.tiles; tile += kWarps * kAhead) {
      double x[kAhead];
      DYNPRUNE_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int64_t at = tile + i * kWarps;
        x[i] = there && at < p.tiles ? from[at * step] : 0;
      }
      DYNPRUNE_UNROLL
      for (int i = 0; i < kAhead; ++i) sum += x[i];
    }
    sums[warp * 32 + lane] = sum;
    sync();
    if (warp > 0 || !there) return;
    sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += sums[i * 32 + lane];
    p.usage[row * p.usage_stride + unit] += sum;
  }
};

}  // namespace

Status reduce_usage(const UsageParams& p, Stream stream) {
  if (p.units == 0 || p.tiles == 0) return 0;
  return launch<UsageKernel>({ceil_div(p.units, 32), kUsageRows, 1, UsageKernel::kSharedBytes}, p, stream);
}

}  // namespace dynprune::cuda
