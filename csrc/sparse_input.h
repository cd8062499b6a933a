// Linear layers for few rows that read only the weights of inputs that some row needs.
#pragma once

#include <cmath>
#include <optional>
#include <vector>

#include "cpu/sparse_input.h"
#include "run.h"

namespace dynprune {

// Inputs that some row needs: above the threshold in magnitude, or NaN. Gives up past `most`.
inline std::optional<std::vector<int64_t>> pick_inputs(const LinearParams& p, float threshold, int64_t most) {
  std::vector<int64_t> picked(p.depth);
  int64_t count = 0;
  for (int64_t k = 0; k < p.depth; ++k) {
    bool needed = false;
    for (int64_t r = 0; r < p.rows; ++r) needed |= !(std::fabs(p.input[r * p.input_stride + k]) <= threshold);
    picked[count] = k;  // without a branch: which inputs are needed cannot be guessed
    count += needed;
    if (count > most) return std::nullopt;
  }
  picked.resize(count);
  return picked;
}

// Runs a layer of at most kSparseRows rows on the picked inputs alone; see SparseInputParams.
inline void run_picked(const LinearParams& p, const std::vector<int64_t>& picked, const float* input_major,
                       const std::optional<at::Tensor>& usage) {
  if (p.rows == 0) return;
  const SparseInputParams s{p, picked.data(), static_cast<int64_t>(picked.size()), input_major};
  run_tasks(
      sparse_input_tasks(s), s.rows * s.count * s.units, s.units, usage,
      [&](double* sums, int64_t begin, int64_t end) { kernels().sparse_input(s, sums, begin, end); }, true);
}

}  // namespace dynprune
