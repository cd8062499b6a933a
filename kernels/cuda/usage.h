// Usage reduction: the second pass over the usage sums of row tiles, in a fixed order.
#pragma once

#include "types.h"

namespace dynprune::cuda {

struct UsageParams {
  const double* partial;  // [tiles, kUsageRows, partial_stride]
  int64_t partial_stride;
  int64_t tiles;
  double* usage;  // [kUsageRows, usage_stride], added to
  int64_t usage_stride;
  int64_t units;
  const int* unit_count;  // [1] in device memory: how many of `units` there are; nullptr: all
};

Status reduce_usage(const UsageParams& p, Stream stream);

}  // namespace dynprune::cuda
