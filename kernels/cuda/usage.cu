#include "gemm.h"
#include "usage.h"

namespace dynprune::cuda {

namespace {

// A block takes 32 units, a warp every eighth tile of them.
struct UsageKernel {
  typedef UsageParams Params;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps, kBlocks = 2;
  static constexpr int kSharedBytes = kWarps * kUsageRows * 32 * 8;

  static DYNPRUNE_DEVICE void run(const UsageParams& p) {
    const int lane = thread() % 32, warp = thread() / 32;
    const int64_t unit = static_cast<int64_t>(block().x) * 32 + lane;
    const int64_t units = counted(p.units, p.unit_count);
    double* const sums = reinterpret_cast<double*>(shared());  // [kWarps][kUsageRows][32]
    DYNPRUNE_NO_UNROLL
    for (int row = 0; row < kUsageRows; ++row) {
      double sum = 0;
      if (unit < units) {
        const double* from = p.partial + row * p.partial_stride + unit;
        DYNPRUNE_NO_UNROLL
        for (int64_t tile = warp; tile < p.tiles; tile += kWarps) sum += from[tile * kUsageRows * p.partial_stride];
      }
      sums[(warp * kUsageRows + row) * 32 + lane] = sum;
    }
    sync();
    if (warp >= kUsageRows || unit >= units) return;
    double sum = 0;
    for (int from = 0; from < kWarps; ++from) sum += sums[(from * kUsageRows + warp) * 32 + lane];
    p.usage[warp * p.usage_stride + unit] += sum;
  }
};

}  // namespace

Status reduce_usage(const UsageParams& p, Stream stream) {
  if (p.units == 0 || p.tiles == 0) return 0;
  return launch<UsageKernel>({ceil_div(p.units, 32), 1, 1, UsageKernel::kSharedBytes}, p, stream);
}

}  // namespace dynprune::cuda
