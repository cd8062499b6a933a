// Running a kernel's tasks on PyTorch's threads, and picking the kernels.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"

namespace dynprune {

// The kernels of this process; a wrong DYNPRUNE_CPU_ISA raises ValueError.
const Kernels& kernels();

// Whether they use AVX-512, with or without AMX.
bool on_avx512();

ActivationSpec parse_activation(const char* op, c10::string_view name, double slope);

// Threads that a parallel loop really runs on; 1 if this was built without OpenMP.
int64_t thread_count();

// Threads that a loop may be split over from here.
inline int64_t most_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

// Waking a thread costs about as much as this many multiply-adds.
constexpr int64_t kWorkPerThread = 200'000;

// Rows per task of a product that is `panels` wide: full tiles, or smaller ones where threads would be idle.
int64_t row_tile(int64_t rows, int64_t panels);

// Splits [0, tasks) into one contiguous chunk per thread; `range(usage, begin, end)` runs a chunk. Usage sums are kept
// per chunk and added up in order, so the result depends on the number of threads only. `apart`: no two tasks have a
// unit in common, so one set of sums serves all chunks, that of the caller if it is laid out like theirs.
template <typename Range>
void run_tasks(int64_t tasks, int64_t work, int64_t units, const std::optional<at::Tensor>& usage, const Range& range,
               bool apart = false) {
  if (tasks == 0 || units == 0) return;
  const int64_t threads = most_threads();
  const int64_t chunks = std::max<int64_t>(1, std::min({tasks, threads, 1 + work / kWorkPerThread}));
  const int64_t padded = padded_units(units), size = kUsageRows * padded;
  const bool direct = usage.has_value() && apart && usage->stride(0) == padded;
  const int64_t sets = !usage.has_value() || direct ? 0 : apart ? 1 : chunks;
  std::vector<double> sums(sets * size, 0.0);
  double* const to_all = direct ? usage->mutable_data_ptr<double>() : sums.data();
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      double* const to = !usage.has_value() ? nullptr : apart ? to_all : to_all + c * size;
      range(to, c * tasks / chunks, (c + 1) * tasks / chunks);
    }
  });
  if (sets == 0) return;
  double* total = usage->mutable_data_ptr<double>();
  for (int64_t row = 0; row < kUsageRows; ++row) {
    for (int64_t c = 0; c < sets; ++c) {
      const double* from = sums.data() + c * size + row * padded;
      double* to = total + row * usage->stride(0);
      for (int64_t j = 0; j < units; ++j) to[j] += from[j];
    }
  }
}

}  // namespace dynprune
