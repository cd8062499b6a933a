#include "emulation.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "fibres.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {

Order order = Order::forward;
std::mt19937 engine(1);
Counts totals{};
Fibre* current = nullptr;

namespace {

std::string message;

// The launch that runs now.
std::vector<std::unique_ptr<Fibre>> pool;  // fibres and their stacks are used again
std::vector<Fibre*> running;
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

}  // namespace

void fail(const char* what, int other_line) {
  describe(what, other_line);
  run_outside(true);
  std::abort();
}

namespace {

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

}  // namespace

void give_way() {
  Fibre* const next = pick();
  if (next == nullptr) fail("deadlock: no thread can run");
  run_fibre(next);
}

namespace {

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
  // Blocks that need not run together may: at random, up to four side by side.
  for (size_t begin = 0; begin < positions.size();) {
    const size_t wanted = grid.together ? positions.size() : order == Order::random ? 1 + engine() % 4 : 1;
    const size_t end = std::min(positions.size(), begin + wanted);
    if (!run_blocks({positions.begin() + begin, positions.begin() + end}, threads, grid.shared_bytes)) return kFailed;
    begin = end;
  }
  return 0;
}

}  // namespace dynprune::cuda
