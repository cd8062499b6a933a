// How a product is divided among blocks, and how it is launched. Host only.
#pragma once

#include <algorithm>

#include "epilogue.h"
#include "usage.h"

namespace dynprune::cuda {

// depth_bytes: of one row of an operand.
inline ProductPlan divide(int64_t rows, int64_t units, int64_t depth_bytes, bool usage, int multiprocessors) {
  int64_t tile_size = 0;
  int resident = 0;
  ProductPlan p{};
  auto cut = [&]<class T>(TileShape shape, T) {
    p.shape = shape;
    p.row_tiles = ceil_div(rows, T::kRows);
    p.unit_tiles = ceil_div(units, T::kUnits);
    tile_size = T::kRows * T::kUnits;
    resident = T::kBlocks;
  };
  // Larger tiles read less, smaller ones keep all multiprocessors busy.
  cut(TileShape::large, LargeTile{});
  if (rows <= FlatTile::kRows) {
    cut(TileShape::flat, FlatTile{});
  } else if (p.row_tiles * p.unit_tiles < multiprocessors || rows <= SmallTile::kRows || units <= SmallTile::kUnits) {
    cut(TileShape::small, SmallTile{});
  }
  // A part of the depth must be deep enough to be worth its trip through memory.
  constexpr int64_t kLeastSlabs = 4, kMostParts = 16;
  const int64_t tiles = std::max<int64_t>(1, p.row_tiles * p.unit_tiles), slabs = ceil_div(depth_bytes, kSlabBytes);
  const int64_t wanted = std::min({kMostParts, slabs / kLeastSlabs, multiprocessors * resident / tiles});
  p.parts = tiles < multiprocessors ? static_cast<int>(std::max<int64_t>(1, wanted)) : 1;
  if (p.parts > 1) {
    p.counter_bytes = ceil_div(tiles * 4, 256) * 256;
    p.split_bytes = tiles * p.parts * tile_size * 4;
  }
  if (usage && p.row_tiles > 1) p.usage_bytes = p.row_tiles * kUsageRows * units * 8;
  return p;
}

// What the kernels of products get besides an op's own parameters.
struct ProductLaunch {
  Epilogue epilogue;
  SplitDepth split;
};

// Shares out the workspace. Usage goes there where several row tiles sum it, and finish_product adds it up.
template <class Op>
ProductLaunch prepare_product(const Op& p, const ProductPlan& plan, const Epilogue& epilogue) {
  ProductLaunch l{epilogue, {plan.parts, nullptr, nullptr}};
  char* const workspace = static_cast<char*>(p.workspace);
  if (plan.parts > 1) {
    l.split.finished = reinterpret_cast<unsigned*>(workspace);
    l.split.sums = reinterpret_cast<float*>(workspace + plan.counter_bytes);
  }
  l.epilogue.usage = p.usage;
  l.epilogue.usage_stride = p.usage_stride;
  l.epilogue.usage_adds = true;
  if (plan.usage_bytes > 0) {
    l.epilogue.usage = reinterpret_cast<double*>(workspace + plan.counter_bytes + plan.split_bytes);
    l.epilogue.usage_stride = p.units;
    l.epilogue.usage_adds = false;
  }
  return l;
}

template <class Op>
Status finish_product(const Op& p, const ProductPlan& plan, const ProductLaunch& l, Stream stream) {
  if (plan.usage_bytes == 0) return 0;
  return reduce_usage({l.epilogue.usage, p.units, plan.row_tiles, p.usage, p.usage_stride, p.units, p.unit_count},
                      stream);
}

// Launches Kernel<tile, number>.
template <template <class, Number> class Kernel, class Params>
Status launch_product(Number number, const ProductPlan& plan, const Params& p, Stream stream) {
  auto with_tile = [&]<class T>(T) {
    const Grid grid{plan.row_tiles, plan.unit_tiles, plan.parts, T::kSharedBytes};
    switch (number) {
      case Number::bf16: return launch<Kernel<T, Number::bf16>>(grid, p, stream);
      case Number::f16: return launch<Kernel<T, Number::f16>>(grid, p, stream);
      case Number::tf32: return launch<Kernel<T, Number::tf32>>(grid, p, stream);
      case Number::f32: return launch<Kernel<T, Number::f32>>(grid, p, stream);
    }
    return kInvalidValue;
  };
  switch (plan.shape) {
    case TileShape::flat: return with_tile(FlatTile{});
    case TileShape::small: return with_tile(SmallTile{});
    case TileShape::large: return with_tile(LargeTile{});
  }
  return kInvalidValue;
}

}  // namespace dynprune::cuda
