#include "plan.h"
#include "sparse_input.h"

namespace dynprune::cuda {

namespace {

// A block's units, and rows, which are all there are. Named like the tiles of products, whose epilogue it shares.
struct SparseTile {
  static constexpr int kRows = kSparseRows, kUnits = 64, kThreads = 128, kBlocks = 4;
  static constexpr int kProductStride = kUnits + 8;
  static constexpr int kQuads = kUnits / kVector, kGroups = kThreads / kQuads;
  static constexpr int kInputs = 256;  // looked at together
  // Values of the inputs that are needed, float [kInputs][kRows], and which they are, int [kInputs]; afterwards the
  // sums of each group of threads, float [kGroups][kRows][kUnits], behind the product.
  static constexpr int kValueBytes = kInputs * kRows * 4, kProductBytes = kRows * kProductStride * 4;
  static constexpr int kScratchBytes = kProductBytes + kGroups * kRows * kUnits * 4;
  static constexpr int kSharedBytes = kScratchBytes + 32 + 16;  // then a count of each warp, and one word for all
  static_assert(kValueBytes + kInputs * 4 <= kScratchBytes);
};

struct SparseLaunch : SparseInputParams, ProductLaunch {};

template <Number number>
DYNPRUNE_DEVICE float load(const void* p, int64_t at) {
  if constexpr (element_bytes(number) == 4) {
    return static_cast<const float*>(p)[at];
  } else {
    const uint16_t half = static_cast<const uint16_t*>(p)[at];
    return number == Number::f16 ? from_f16(half) : from_bf16(half);
  }
}

// Four units' weights of one input.
template <Number number>
DYNPRUNE_DEVICE void load_units(const SparseLaunch& p, int64_t k, int64_t unit, int some, bool vectors,
                                float (&w)[kVector]) {
  const int64_t at = k * p.stride_k + unit * p.stride_u;
  if (vectors && some >= kVector) {
    if constexpr (element_bytes(number) == 4) {
      const Float4 v = *reinterpret_cast<const Float4*>(static_cast<const float*>(p.weight) + at);
      w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
    } else {
      const Float2 v = *reinterpret_cast<const Float2*>(static_cast<const uint16_t*>(p.weight) + at);
      const uint32_t words[2] = {float_bits(v.x), float_bits(v.y)};
      DYNPRUNE_UNROLL
      for (int j = 0; j < kVector; ++j) {
        const uint16_t half = static_cast<uint16_t>(words[j / 2] >> (j % 2 * 16));
        w[j] = number == Number::f16 ? from_f16(half) : from_bf16(half);
      }
    }
    return;
  }
  DYNPRUNE_UNROLL
  for (int j = 0; j < kVector; ++j) w[j] = j < some ? load<number>(p.weight, at + j * p.stride_u) : 0.f;
}

template <Number number>
struct SparseKernel : SparseTile {
  typedef SparseLaunch Params;

  // Picks those of inputs [begin, begin + kInputs) that some row needs, in order. Returns how many.
  static DYNPRUNE_DEVICE int pick(const SparseLaunch& p, int64_t begin, int64_t end) {
    float* const values = reinterpret_cast<float*>(shared());
    int* const picked = reinterpret_cast<int*>(shared() + kValueBytes);
    int* const counts = reinterpret_cast<int*>(shared() + kScratchBytes);
    const int lane = thread() % 32, warp = thread() / 32;
    int total = 0;
    DYNPRUNE_NO_UNROLL
    for (int base = 0; base < kInputs; base += kThreads) {
      const int64_t k = begin + base + thread();
      float x[kRows];
      bool needed = false;
      DYNPRUNE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        x[r] = k < end && r < p.rows ? load<number>(p.input, r * p.input_stride + k) : 0.f;
        needed = needed || (k < end && r < p.rows && !(fabsf(x[r]) <= p.threshold));  // NaN is needed
      }
      const unsigned votes = lane_votes(needed);
      if (lane == 0) counts[warp] = ones(votes);
      sync();
      int at = total + ones(votes & ((1u << lane) - 1));
      DYNPRUNE_UNROLL
      for (int w = 0; w < kThreads / 32; ++w) {
        if (w < warp) at += counts[w];
        total += counts[w];
      }
      if (needed) {
        picked[at] = static_cast<int>(k);
        DYNPRUNE_UNROLL
        for (int r = 0; r < kRows; ++r) values[at * kRows + r] = x[r];
      }
      sync();  // the counts are written again
    }
    return total;
  }

  static DYNPRUNE_DEVICE void run(const SparseLaunch& p) {
    const int64_t unit = static_cast<int64_t>(block().x) * kUnits;
    const int64_t units = counted(p.units, p.unit_count), depth = counted(p.depth, p.depth_count);
    if (unit >= units) return;  // all of the block: nobody waits for it
    const int part = block().z, quad = thread() % kQuads, group = thread() / kQuads;
    const int pieces = static_cast<int>(ceil_div(depth, kInputs));
    const int64_t begin = static_cast<int64_t>(part_begin(part, p.split.parts, pieces)) * kInputs;
    const int64_t last = static_cast<int64_t>(part_begin(part + 1, p.split.parts, pieces)) * kInputs;
    const int64_t end = last < depth ? last : depth, first = unit + quad * kVector;
    const int some = at_most(kVector, units - first), rows = static_cast<int>(p.rows);
    const bool vectors = p.stride_u == 1 && p.stride_k % kVector == 0 && is_aligned(p.weight, 0);
    const float* const values = reinterpret_cast<const float*>(shared());
    const int* const picked = reinterpret_cast<const int*>(shared() + kValueBytes);
    float sums[kRows][kVector] = {};
    DYNPRUNE_NO_UNROLL
    for (int64_t piece = begin; piece < end; piece += kInputs) {
      const int count = pick(p, piece, end);
      DYNPRUNE_NO_UNROLL
      for (int i = group; i < count && some > 0; i += kGroups) {
        float w[kVector];
        load_units<number>(p, picked[i], first, some, vectors, w);
        DYNPRUNE_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (r >= rows) break;
          DYNPRUNE_UNROLL
          for (int j = 0; j < kVector; ++j) sums[r][j] += values[i * kRows + r] * w[j];
        }
      }
      sync();  // the values are written again
    }
    float* const product = reinterpret_cast<float*>(shared());
    float* const grouped = product + kRows * kProductStride;  // [kGroups][kRows][kUnits]
    DYNPRUNE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      *reinterpret_cast<Float4*>(grouped + (group * kRows + r) * kUnits + quad * kVector) = {sums[r][0], sums[r][1],
                                                                                             sums[r][2], sums[r][3]};
    }
    sync();
    DYNPRUNE_NO_UNROLL
    for (int i = thread(); i < kRows * kUnits; i += kThreads) {
      float sum = 0.f;
      for (int g = 0; g < kGroups; ++g) sum += grouped[g * kRows * kUnits + i];
      product[i / kUnits * kProductStride + i % kUnits] = sum;
    }
    sync();
    if (!gather_parts<SparseTile>(p.split, block().x, part)) return;
    finish<SparseTile, number>(p.epilogue, 0, 0, rows, unit, at_most(kUnits, units - unit), nullptr);
  }
};

}  // namespace

ProductPlan sparse_input_plan(const SparseInputParams& p, int multiprocessors) {
  ProductPlan plan{};
  plan.row_tiles = 1;
  plan.unit_tiles = ceil_div(p.units, SparseTile::kUnits);
  const int64_t tiles = std::max<int64_t>(1, plan.unit_tiles), pieces = ceil_div(p.depth, SparseTile::kInputs);
  const int64_t wanted = std::min<int64_t>({32, pieces, multiprocessors * SparseTile::kBlocks / tiles});
  plan.parts = static_cast<int>(std::max<int64_t>(1, wanted));
  if (plan.parts > 1) {
    plan.counter_bytes = ceil_div(tiles * 4, 256) * 256;
    plan.split_bytes = tiles * plan.parts * SparseTile::kRows * SparseTile::kUnits * 4;
  }
  return plan;
}

Status sparse_input(const SparseInputParams& p, const ProductPlan& plan, Stream stream) {
  if (p.rows == 0 || p.units == 0) return 0;
  if (p.rows > kSparseRows) return kInvalidValue;
  const Epilogue epilogue{p.bias, p.units, nullptr, p.output, p.output_stride, false, p.activation, {}, 0, {}};
  const SparseLaunch l{p, prepare_product(p, plan, epilogue)};
  const Grid grid{plan.unit_tiles, 1, plan.parts, SparseTile::kSharedBytes};
  switch (p.number) {
    case Number::bf16: return launch<SparseKernel<Number::bf16>>(grid, l, stream);
    case Number::f16: return launch<SparseKernel<Number::f16>>(grid, l, stream);
    case Number::tf32:
    case Number::f32: return launch<SparseKernel<Number::f32>>(grid, l, stream);
  }
  return kInvalidValue;
}

}  // namespace dynprune::cuda
