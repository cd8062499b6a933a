#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cuda/device.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

namespace {

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

Order order = Order::forward;
std::mt19937 engine(1);
std::string message;
Counts totals{};

// The launch that runs now.
std::vector<std::unique_ptr<Fibre>> pool;  // fibres and their stacks are used again
std::vector<Fibre*> running;
Fibre* current = nullptr;
ucontext_t outside;
void* outside_fake_stack = nullptr;
const void* outside_stack = nullptr;
size_t outside_size = 0;
void (*body)(const void*) = nullptr;
const void* parameters = nullptr;

void leave_for(ucontext_t* from, void** fake, ucontext_t* to, const void* stack, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, stack, size);
#else
  (void)fake, (void)stack, (void)size;
#endif
  swapcontext(from, to);
}

void arrive(void* fake, const void** stack, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, stack, size);
#else
  (void)fake, (void)stack, (void)size;
#endif
}

void run_fibre(Fibre* to) {
  Fibre* const from = current;
  if (from == to) return;
  current = to;
  leave_for(&from->context, &from->fake_stack, &to->context, to->stack, kStackBytes);
  arrive(from->fake_stack, nullptr, nullptr);
}

void run_outside(bool for_good) {
  Fibre* const from = current;
  current = nullptr;
  leave_for(&from->context, for_good ? nullptr : &from->fake_stack, &outside, outside_stack, outside_size);
}

void describe(const char* what, int other_line) {
  const dynprune::cuda::Position& at = current->block->position;
  message = std::string(what) + ", thread " + std::to_string(current->thread) + " of block (" + std::to_string(at.x) +
            ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + "), line " + std::to_string(current->line);
  if (other_line > 0) message += " and line " + std::to_string(other_line);
}

// Ends the launch. Fibres are left where they stand, so nothing on their stacks may own memory.
[[noreturn]] void fail(const char* what, int other_line = 0) {
  describe(what, other_line);
  run_outside(true);
  std::abort();
}

Fibre* pick() {
  const size_t n = running.size();
  auto find = [&]() -> Fibre* {
    const size_t start = order == Order::random ? engine() % n : 0;
    for (size_t i = 0; i < n; ++i) {
      Fibre* const f = running[order == Order::reverse ? n - 1 - i : (start + i) % n];
      if (f->state == State::ready) return f;
    }
    return nullptr;
  };
  if (Fibre* f = find()) return f;
  for (Fibre* f : running) {
    if (f->state == State::awaiting && *f->counter >= f->target) f->state = State::ready;
  }
  return find();
}

// Lets others run until this fibre may again.
void give_way() {
  Fibre* const next = pick();
  if (next == nullptr) fail("deadlock: no thread can run");
  run_fibre(next);
}

void do_copy(const Copy& c) {
  if (c.bytes > 0) std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
  std::memset(static_cast<char*>(c.to) + c.bytes, 0, static_cast<size_t>(16 - c.bytes));
}

float element(dynprune::cuda::Number number, const char* bytes, int k) {
  using dynprune::cuda::Number;
  if (dynprune::cuda::element_bytes(number) == 2) {
    uint16_t half;
    std::memcpy(&half, bytes + 2 * k, 2);
    return number == Number::f16 ? dynprune::cuda::from_f16(half) : dynprune::cuda::from_bf16(half);
  }
  uint32_t bits;
  std::memcpy(&bits, bytes + 4 * k, 4);
  return dynprune::cuda::bits_float(bits & ~0x1fffu);  // of tf32 the tensor cores read 19 bits
}

void load_matrices(Fibre** lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const char* row = static_cast<const char*>(lanes[matrix * 8 + lane / 4]->operands.row);
      std::memcpy(&lanes[lane]->operands.loaded[matrix], row + lane % 4 * 4, 4);
    }
  }
}

void multiply_lanes(Fibre** lanes) {
  char a[16][32], b[8][32];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Operands& o = lanes[lane]->operands;
    for (int r = 0; r < 4; ++r) std::memcpy(&a[lane / 4 + r % 2 * 8][lane % 4 * 4 + r / 2 * 16], &o.a[r], 4);
    for (int r = 0; r < 2; ++r) std::memcpy(&b[lane / 4][lane % 4 * 4 + r * 16], &o.b[r], 4);
  }
  const dynprune::cuda::Number number = lanes[0]->operands.number;
  const int depth = 32 / dynprune::cuda::element_bytes(number);
  float wide_a[16][16], wide_b[8][16];
  for (int k = 0; k < depth; ++k) {
    for (int i = 0; i < 16; ++i) wide_a[i][k] = element(number, a[i], k);
    for (int i = 0; i < 8; ++i) wide_b[i][k] = element(number, b[i], k);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, unit = lane % 4 * 2 + i % 2;
      double sum = 0;
      for (int k = 0; k < depth; ++k) sum += static_cast<double>(wide_a[row][k]) * wide_b[unit][k];
      float& to = lanes[lane]->operands.sum[i];
      to = static_cast<float>(static_cast<double>(to) + sum);
    }
  }
  ++totals.products;
}

void count_votes(Fibre** lanes) {
  unsigned votes = 0;
  for (int lane = 0; lane < kLanes; ++lane) votes |= static_cast<unsigned>(lanes[lane]->operands.vote) << lane;
  for (int lane = 0; lane < kLanes; ++lane) *lanes[lane]->operands.votes = votes;
}

// All lanes of a warp meet; the last to come does the work of all.
void meet(Meeting meeting, int line, const Operands& operands) {
  Fibre& self = *current;
  self.meeting = meeting;
  self.line = line;
  self.operands = operands;
  Block& block = *self.block;
  const int warp = self.thread / kLanes;
  Fibre** const lanes = block.fibres.data() + warp * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Fibre& other = *lanes[lane];
    if (other.state == State::done) fail("a lane ended before its warp met");
    if (other.state == State::at_warp && (other.meeting != meeting || other.line != line)) {
      fail("lanes of a warp meet at different places", other.line);
    }
  }
  self.state = State::at_warp;
  if (++block.arrived[warp] < kLanes) return give_way();
  switch (meeting) {
    case Meeting::matrix: load_matrices(lanes); break;
    case Meeting::product: multiply_lanes(lanes); break;
    case Meeting::votes: count_votes(lanes); break;
    case Meeting::sync:
    case Meeting::none: break;
  }
  block.arrived[warp] = 0;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane]->state = State::ready;
  if (order == Order::random) give_way();
}

void fibre_main() {
  if (outside_stack == nullptr) {
    arrive(nullptr, &outside_stack, &outside_size);
  } else {
    arrive(nullptr, nullptr, nullptr);
  }
  body(parameters);
  Fibre& self = *current;
  self.line = 0;
  for (const std::vector<Copy>& group : self.groups) {
    if (!group.empty()) fail("a thread ended before its copies");
  }
  if (!self.open.empty()) fail("a thread ended before its copies");
  Block& block = *self.block;
  self.state = State::done;
  ++block.done;
  if (block.at_barrier > 0) fail("a thread ended while others wait for it");
  bool all_done = true;
  for (const Fibre* f : running) all_done = all_done && f->state == State::done;
  if (all_done) run_outside(true);
  Fibre* const next = pick();
  if (next == nullptr) fail("deadlock: no thread can run");
  current = next;
  leave_for(&self.context, nullptr, &next->context, next->stack, kStackBytes);
}

Fibre* fresh_fibre(size_t index) {
  if (index == pool.size()) {
    pool.push_back(std::make_unique<Fibre>());
    void* stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) std::abort();
    pool.back()->stack = static_cast<char*>(stack);
  }
  Fibre& f = *pool[index];
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(f.stack, kStackBytes);
#endif
  f.state = State::ready;
  f.fake_stack = nullptr;
  f.open.clear();
  f.groups.clear();
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fibre_main, 0);
  return &f;
}

// Runs blocks side by side; false with `message` set if something was wrong.
bool run_blocks(const std::vector<dynprune::cuda::Position>& positions, int threads, int shared_bytes) {
  std::vector<std::unique_ptr<Block>> blocks;
  running.clear();
  for (const dynprune::cuda::Position& position : positions) {
    blocks.push_back(std::make_unique<Block>());
    Block& block = *blocks.back();
    block.position = position;
    void* memory = nullptr;
    const size_t bytes = shared_bytes > 0 ? static_cast<size_t>(shared_bytes) : 1;
    if (posix_memalign(&memory, 128, bytes) != 0) std::abort();
    std::memset(memory, 0xff, bytes);  // NaN
    block.shared.reset(static_cast<char*>(memory));
    block.arrived.assign(threads / kLanes, 0);
    for (int t = 0; t < threads; ++t) {
      Fibre* const f = fresh_fibre(running.size());
      f->block = &block;
      f->thread = t;
      block.fibres.push_back(f);
      running.push_back(f);
    }
    ++totals.blocks;
  }
  message.clear();
  current = pick();
  outside_stack = nullptr;
  leave_for(&outside, &outside_fake_stack, &current->context, current->stack, kStackBytes);
  arrive(outside_fake_stack, nullptr, nullptr);
  return message.empty();
}

}  // namespace

void set_order(Order o, uint32_t seed) {
  order = o;
  engine.seed(seed);
}

const std::string& error() { return message; }
const Counts& counts() { return totals; }

}  // namespace emulation

namespace dynprune::cuda {

using namespace emulation;

int thread() { return current->thread; }
Position block() { return current->block->position; }
char* shared() { return current->block->shared.get(); }

void sync(int line) {
  Fibre& self = *current;
  Block& block = *self.block;
  self.line = line;
  for (const Fibre* f : block.fibres) {
    if (f->state == State::done) fail("a thread ended before its block met");
    if (f->state == State::at_block && f->line != line) {
      fail("threads of a block meet at different places", f->line);
    }
  }
  self.state = State::at_block;
  if (++block.at_barrier < static_cast<int>(block.fibres.size())) return give_way();
  ++totals.barriers;
  block.at_barrier = 0;
  for (Fibre* f : block.fibres) f->state = State::ready;
  give_way();
}

void sync_warp(int line) { meet(Meeting::sync, line, {}); }

unsigned lane_votes(bool vote, int line) {
  unsigned votes = 0;
  Operands o{};
  o.vote = vote;
  o.votes = &votes;
  meet(Meeting::votes, line, o);
  return votes;
}

void copy_async(void* to, const void* from, int bytes) {
  ++totals.copies;
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) fail("a copy to an address that is not a multiple of 16");
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0 && bytes > 0) {
    fail("a copy from an address that is not a multiple of 16");
  }
  const Copy copy{to, from, bytes};
  if (order == Order::reverse || (order == Order::random && engine() % 2 == 0)) return do_copy(copy);
  std::memset(to, 0xff, 16);  // neither what was there nor what will be
  current->open.push_back(copy);
}

void commit_copies() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void wait_for_copies(int pending) {
  std::vector<std::vector<Copy>>& groups = current->groups;
  while (static_cast<int>(groups.size()) > pending) {
    for (const Copy& copy : groups.front()) do_copy(copy);
    groups.erase(groups.begin());
  }
}

void load_matrix(uint32_t (&r)[4], const void* row, int line) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a matrix row at an address that is not a multiple of 16");
  Operands o{};
  o.row = row;
  o.loaded = r;
  meet(Meeting::matrix, line, o);
}

void multiply_as(Number number, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  Operands o{};
  o.number = number;
  o.sum = sum;
  o.a = a;
  o.b[0] = b0;
  o.b[1] = b1;
  meet(Meeting::product, line, o);
}

uint16_t to_f16(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

float from_f16(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}

void fence() {}

unsigned increment(unsigned* counter) { return (*counter)++; }

void await(const unsigned* counter, unsigned target) {
  Fibre& self = *current;
  if (order != Order::random && *counter >= target) return;
  self.state = State::awaiting;
  self.counter = counter;
  self.target = target;
  give_way();
}

Status emulate(const Grid& grid, int threads, void (*kernel)(const void*), const void* params) {
  ++totals.launches;
  body = kernel;
  parameters = params;
  std::vector<Position> positions;
  for (int64_t i = 0; i < grid.x * grid.y * grid.z; ++i) {
    positions.push_back(
        {static_cast<int>(i % grid.x), static_cast<int>(i / grid.x % grid.y), static_cast<int>(i / grid.x / grid.y)});
  }
  if (order == Order::reverse) positions = {positions.rbegin(), positions.rend()};
  if (order == Order::random) std::shuffle(positions.begin(), positions.end(), engine);
  if (positions.empty()) return 0;
  if (grid.together) return run_blocks(positions, threads, grid.shared_bytes) ? 0 : kFailed;
  for (const Position& position : positions) {
    if (!run_blocks({position}, threads, grid.shared_bytes)) return kFailed;
  }
  return 0;
}

}  // namespace dynprune::cuda
