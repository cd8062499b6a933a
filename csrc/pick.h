// Which inputs of a few rows are worth reading the weights of.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace dynprune {

// Inputs that some row needs: above the threshold in magnitude, or NaN. Gives up, with nothing, past `most`.
inline std::vector<int64_t> pick_inputs(const float* input, int64_t stride, int64_t rows, int64_t depth,
                                        float threshold, int64_t most) {
  std::vector<int64_t> picked;
  for (int64_t k = 0; k < depth; ++k) {
    bool needed = false;
    for (int64_t r = 0; r < rows; ++r) needed = needed || !(std::fabs(input[r * stride + k]) <= threshold);
    if (!needed) continue;
    if (static_cast<int64_t>(picked.size()) == most) return {};
    picked.push_back(k);
  }
  return picked;
}

}  // namespace dynprune
