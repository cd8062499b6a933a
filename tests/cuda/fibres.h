// What the emulation's two halves share: fibres and who runs next (emulation.cpp), and what the instructions do when
// lanes and threads meet (instructions.cpp).
#pragma once

#include <ucontext.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "cuda/device.h"
#include "emulation.h"

namespace emulation {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 256 * 1024;

enum class State { ready, at_warp, at_block, awaiting, done };
enum class Meeting { none, sync, matrix, product, votes };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

// What a lane brings to a meeting of its warp.
struct Operands {
  const void* row;
  uint32_t* loaded;
  dynprune::cuda::Number number;
  float* sum;
  const uint32_t* a;
  uint32_t b[2];
  bool vote;
  unsigned* votes;
};

struct Block;

struct Fibre {
  ucontext_t context;
  void* fake_stack = nullptr;  // the address sanitizer's
  char* stack = nullptr;
  Block* block = nullptr;
  int thread = 0;
  State state = State::ready;
  Meeting meeting = Meeting::none;
  int line = 0;
  Operands operands{};
  const unsigned* counter = nullptr;
  unsigned target = 0;
  std::vector<Copy> open;                 // not committed
  std::vector<std::vector<Copy>> groups;  // committed, the oldest first
};

struct Block {
  dynprune::cuda::Position position;
  std::unique_ptr<char, void (*)(void*)> shared{nullptr, std::free};
  std::vector<Fibre*> fibres;
  std::vector<int> arrived;  // per warp
  int at_barrier = 0, done = 0;
};

// The thread that runs now.
extern Fibre* current;
extern Order order;
extern std::mt19937 engine;
extern Counts totals;

// Lets others run until this fibre may again.
void give_way();

// Ends the launch. Fibres are left where they stand, so nothing on their stacks may own memory.
[[noreturn]] void fail(const char* what, int other_line = 0);

}  // namespace emulation
