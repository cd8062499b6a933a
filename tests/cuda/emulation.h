// Runs kernel bodies on the CPU: every thread of a block is a fibre, and warps, barriers, asynchronous copies and the
// tensor cores' instructions are what connects them. It shows:
//   - accesses outside of any buffer, shared memory included, to the address sanitizer;
//   - barriers that are missing: what is read too early is NaN, or differs with the order in which threads run;
//   - copies that are read before they were waited for, or whose source or place changes meanwhile;
//   - lanes of a warp that part where they must not, threads that end while others wait for them, and deadlocks.
// It knows nothing of time, of caches, or of how a GPU's memory orders accesses of different blocks.
#pragma once

#include <cstdint>
#include <string>

namespace emulation {

// Which of the threads that can run does: the first, the last, or any. Copies happen as late as they may, as early, or
// either. Blocks come in the same order.
enum class Order { forward, reverse, random };

void set_order(Order order, uint32_t seed);

// What was wrong with the last launch that returned kFailed.
const std::string& error();
constexpr int kFailed = 999;

// Since the program began.
struct Counts {
  int64_t launches, blocks, products, barriers, copies;
};
const Counts& counts();

}  // namespace emulation
