// What kernel bodies are written against: the instructions of the GPU, or functions that stand in for them when a host
// compiler builds the same bodies for the tests (see tests/cuda/emulation.h).
#pragma once

#include "types.h"

namespace dynprune::cuda {

struct Position {
  int x, y, z;
};

// A launch: blocks, and dynamic shared memory of each.
struct Grid {
  int64_t x, y, z;
  int shared_bytes;
  bool together = false;  // blocks wait for one another: all of them must be resident
};

}  // namespace dynprune::cuda

// In both: thread(), block(), shared(), sync(), sync_warp(), copy_async(), commit_copies(), wait_copies(),
// load_matrix(), multiply(), any_lane(), lane_votes(), increment(), load_fresh(), await(), and launch().
#if defined(__CUDACC__)
#include "device_cuda.h"
#else
#include "device_host.h"
#endif
