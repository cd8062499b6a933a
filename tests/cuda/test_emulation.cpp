// That the emulation notices what it is there for: kernels with one mistake each.
#include "check.h"

namespace {

using namespace check;
using namespace dynprune::cuda;

struct Params {
  const float* from;
  float* to;
  unsigned* counter;
};

// Each thread hands its value to its neighbour through shared memory.
template <bool synced>
struct NeighbourKernel {
  typedef ::Params Params;
  static constexpr int kThreads = 64, kBlocks = 1;
  static void run(const Params& p) {
    float* const values = reinterpret_cast<float*>(shared());
    values[thread()] = p.from[thread()];
    if (synced) sync();
    p.to[thread()] = values[(thread() + 33) % kThreads];
  }
};

// Copies 16 floats through shared memory.
template <int pending>
struct CopyKernel {
  typedef ::Params Params;
  static constexpr int kThreads = 32, kBlocks = 1;
  static void run(const Params& p) {
    if (thread() < 4) copy_async(shared() + 16 * thread(), p.from + 4 * thread(), 16);
    commit_copies();
    wait_copies<pending>();
    sync();
    if (thread() < 16) p.to[thread()] = reinterpret_cast<const float*>(shared())[thread()];
    wait_copies<0>();
  }
};

struct PartingKernel {
  typedef ::Params Params;
  static constexpr int kThreads = 32, kBlocks = 1;
  static void run(const Params&) {
    if (thread() < 16) {
      sync_warp();
    } else {
      sync_warp();
    }
  }
};

struct LeavingKernel {
  typedef ::Params Params;
  static constexpr int kThreads = 64, kBlocks = 1;
  static void run(const Params&) {
    if (thread() == 5) return;
    sync();
  }
};

struct WaitingKernel {
  typedef ::Params Params;
  static constexpr int kThreads = 32, kBlocks = 1;
  static void run(const Params& p) {
    if (thread() == 0) {
      increment(p.counter);
      await(p.counter, 3);
    }
    sync();
  }
};

struct MisalignedKernel {
  typedef ::Params Params;
  static constexpr int kThreads = 32, kBlocks = 1;
  static void run(const Params& p) {
    copy_async(shared() + 16 * thread(), p.from + 1, 16);
    commit_copies();
    wait_copies<0>();
  }
};

template <class Kernel>
bool right(const std::vector<float>& from, int shift, int count) {
  std::vector<float> to(64, -1.f);
  unsigned counter = 0;
  if (launch<Kernel>({1, 1, 1, 512}, {from.data(), to.data(), &counter}, nullptr) != 0) return false;
  bool same = true;
  for (int i = 0; i < count; ++i) same = same && to[i] == from[(i + shift) % 64];
  return same;
}

template <class Kernel>
void expect_error(const std::string& part, int64_t blocks = 1, bool together = false) {
  std::vector<float> from(64), to(64);
  unsigned counter = 0;
  const int status = launch<Kernel>({blocks, 1, 1, 512, together}, {from.data(), to.data(), &counter}, nullptr);
  expect(status == emulation::kFailed && emulation::error().find(part) != std::string::npos,
         "emulation: notices '" + part + "', says '" + emulation::error() + "'");
}

}  // namespace

void test_emulation() {
  const std::vector<float> from = random_floats(64);
  bool race = false, early = false;
  for (const Orders& order : kOrders) {
    emulation::set_order(order.order, 3);
    expect(right<NeighbourKernel<true>>(from, 33, 64), std::string("emulation: a barrier holds, ") + order.name);
    expect(right<CopyKernel<0>>(from, 0, 16), std::string("emulation: copies arrive, ") + order.name);
    race = race || !right<NeighbourKernel<false>>(from, 33, 64);
    early = early || !right<CopyKernel<1>>(from, 0, 16);
    expect_error<PartingKernel>("different places");
    expect_error<LeavingKernel>("ended");
    expect_error<WaitingKernel>("deadlock", 2, true);
    expect_error<MisalignedKernel>("not a multiple of 16");
    unsigned counter = 0;
    expect(launch<WaitingKernel>({3, 1, 1, 512, true}, {nullptr, nullptr, &counter}, nullptr) == 0 && counter == 3,
           std::string("emulation: blocks wait for one another, ") + order.name);
  }
  expect(race, "emulation: notices a missing barrier");
  expect(early, "emulation: notices a copy that is read too early");
}
