// What the kernels and their callers share, the same for every instruction set. Functions in these headers are
// `static`: an `inline` one would be emitted once per instruction set under one name, and an older CPU might get the
// wrong copy.
#pragma once

#include <cstdint>

namespace dynprune {

// Weights are packed in panels of up to kPanel output units, each [depth][width]; the last panel is as wide as the rest
// of the units rounded up to kUnitAlign (half a vector), its surplus columns zero. In bfloat16 a panel is [depth / 2]
// [width][2], which is what the CPUs' instructions take: two rows of the depth lie side by side, unit by unit; the last
// row of an odd depth follows by itself, [width].
constexpr int64_t kPanel = 64;
constexpr int64_t kUnitAlign = 8;
// Rows (of a linear layer) or pixels (of a convolution) of one tile.
constexpr int64_t kRowTile = 64;
// Usage sums per unit: sum |a|, sum a, sum a^2, count.
constexpr int64_t kUsageRows = 4;

static constexpr int64_t padded_units(int64_t units) { return (units + kUnitAlign - 1) / kUnitAlign * kUnitAlign; }
static constexpr int64_t panel_count(int64_t units) { return (units + kPanel - 1) / kPanel; }

// A task of a product is a tile of rows times a panel. Tasks of one tile are neighbours, or those of one panel and a
// group of tiles.
struct TileTask {
  int64_t tile, panel;
};
static constexpr TileTask tile_task(int64_t task, int64_t tiles, int64_t panels, int64_t group) {
  const int64_t first = task / (group * panels) * group, in_group = task - first * panels;
  const int64_t some = group < tiles - first ? group : tiles - first;
  return {first + in_group % some, in_group / some};
}

enum class Activation : int32_t { none, relu, leaky_relu, gelu, gelu_tanh, silu, tanh, sigmoid };

struct ActivationSpec {
  Activation kind = Activation::none;
  float slope = 0.f;  // of leaky_relu, for negative inputs
};

}  // namespace dynprune
