#include <set>

#include "check.h"
#include "cuda/plan.h"

using namespace check;
using namespace dynprune::cuda;

namespace {

// Every chunk has a place of its own, and what eight lanes read at a time lies in eight different groups of banks.
void test_swizzle() {
  std::set<int> places;
  bool apart = true;
  for (int row = 0; row < 64; ++row) {
    for (int chunk = 0; chunk < kSlabChunks; ++chunk) places.insert(swizzled(row, chunk));
  }
  expect(places.size() == 512 && *places.begin() == 0 && *places.rbegin() == 511 * 16, "index: chunks fill the slab");
  for (int chunk = 0; chunk < kSlabChunks; chunk += 2) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::set<int> a, b;
      for (int lane = matrix * 8; lane < matrix * 8 + 8; ++lane) {
        a.insert(operand_a(lane, 16, chunk) / 16 % 8);
        b.insert(operand_b(lane, 16, chunk) / 16 % 8);
      }
      apart = apart && a.size() == 8 && b.size() == 8;
    }
  }
  expect(apart, "index: reads of a matrix meet no bank twice");
}

template <class T>
void test_product_banks(const char* name) {
  bool apart = true;  // the half warps that store two floats each
  for (int half = 0; half < 2; ++half) {
    std::set<int> banks;
    for (int lane = half * 16; lane < half * 16 + 16; ++lane) {
      const int at = lane / 4 * T::kProductStride + lane % 4 * 2;
      banks.insert({at % 32, (at + 1) % 32});
    }
    apart = apart && banks.size() == 32;
  }
  expect(apart, std::string("index: stores of a product meet no bank twice, ") + name);
  expect(T::kSharedBytes * T::kBlocks <= 163 * 1024, std::string("index: blocks fit an A100's shared memory, ") + name);
}

void test_parts() {
  bool whole = true;
  for (int slabs : {0, 1, 5, 16, 17, 1000}) {
    for (int parts : {1, 2, 7, 16}) {
      int64_t sum = 0;
      for (int part = 0; part < parts; ++part) {
        const int size = part_begin(part + 1, parts, slabs) - part_begin(part, parts, slabs);
        whole = whole && size >= slabs / parts && size <= slabs / parts + 1;
        sum += size;
      }
      whole = whole && sum == slabs && part_begin(0, parts, slabs) == 0;
    }
  }
  expect(whole, "index: parts of the depth are all of it, and even");
}

void test_taps() {
  bool right = true;
  for (int k = 0; k < 27 * 5; ++k) {
    const TapChunk at = tap_chunk(k, 5);
    right = right && at.tap * 5 + at.chunk == k && at.chunk >= 0 && at.chunk < 5;
  }
  expect(right, "index: chunks of taps");
}

void test_division() {
  auto shape = [](int64_t rows, int64_t units) { return divide(rows, units, 2048, true, 132).shape; };
  expect(shape(1, 4096) == TileShape::flat && shape(16, 64) == TileShape::flat, "division: few rows are flat");
  expect(shape(17, 4096) == TileShape::small && shape(512, 512) == TileShape::small, "division: small tiles fill more");
  expect(shape(4096, 4096) == TileShape::large, "division: large tiles where there are enough");
  for (int64_t rows : {1, 16, 64, 65, 1000, 4096}) {
    for (int64_t units : {1, 64, 100, 4096}) {
      for (int64_t depth : {0, 2, 512, 8192}) {
        const ProductPlan p = divide(rows, units, depth, true, 132);
        const std::string what = std::to_string(rows) + "x" + std::to_string(depth) + "x" + std::to_string(units);
        const bool enough = p.row_tiles > 0 && p.unit_tiles > 0 && p.parts >= 1 && p.parts <= 16;
        const bool deep = p.parts == 1 || ceil_div(depth, kSlabBytes) / p.parts >= 4;
        const bool room = p.parts == 1 || p.counter_bytes >= p.row_tiles * p.unit_tiles * 4;
        expect(enough && deep && room && (p.row_tiles > 1) == (p.usage_bytes > 0), "division: " + what);
      }
    }
  }
}

}  // namespace

void test_index() {
  test_swizzle();
  test_product_banks<LargeTile>("large");
  test_product_banks<SmallTile>("small");
  test_product_banks<FlatTile>("flat");
  test_parts();
  test_taps();
  test_division();
}
