// The instructions of device.h: what lanes and threads do when they meet, and asynchronous copies.
#include <cstring>

#include "fibres.h"

namespace emulation {

namespace {

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

}  // namespace

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

unsigned increment(unsigned* counter) { return (*counter)++; }

void await(const unsigned* counter, unsigned target) {
  Fibre& self = *current;
  if (order != Order::random && *counter >= target) return;
  self.state = State::awaiting;
  self.counter = counter;
  self.target = target;
  give_way();
}

}  // namespace dynprune::cuda
