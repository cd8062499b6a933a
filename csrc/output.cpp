#include "output.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dynprune {

namespace {

constexpr size_t kSmallest = 256 * 1024;        // what is smaller stays on the C library's heap
constexpr size_t kMostKept = 64 * 1024 * 1024;  // bytes that lie idle, at most
constexpr size_t kRound = 64 * 1024;

struct Block {
  void* data;
  size_t size;
};

// Large blocks in large pages, where the system gives some when asked: 4 KiB pages cost more to touch for the first
// time than the weights of a plan cost to pack.
void* fresh(size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kLargePage = 2 * 1024 * 1024;
  void* data = nullptr;
  if (size >= 2 * kLargePage && posix_memalign(&data, kLargePage, size) == 0) {
    madvise(data, size, MADV_HUGEPAGE);
    return data;
  }
#endif
  return c10::alloc_cpu(size);
}

// Freed blocks, the latest first: it is the most likely to be in a cache.
class Idle {
 public:
  Block take(size_t size) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto it = blocks_.begin(); it != blocks_.end(); ++it) {
        if (it->size < size || it->size > size + size / 4) continue;
        const Block found = *it;
        blocks_.erase(it);
        kept_ -= found.size;
        return found;
      }
    }
    return {fresh(size), size};
  }

  void give(Block block) {
    std::list<Block> surplus;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      blocks_.push_front(block);
      kept_ += block.size;
      while (kept_ > kMostKept) {
        kept_ -= blocks_.back().size;
        surplus.splice(surplus.end(), blocks_, std::prev(blocks_.end()));
      }
    }
    for (const Block& old : surplus) c10::free_cpu(old.data);
  }

 private:
  std::mutex mutex_;
  std::list<Block> blocks_;
  size_t kept_ = 0;
};

// Never destroyed: tensors may outlive everything static.
Idle& idle() {
  static Idle* const instance = new Idle;
  return *instance;
}

void give_back(void* context) {
  Block* block = static_cast<Block*>(context);
  idle().give(*block);
  delete block;
}

class OutputAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    if (size < kSmallest) return c10::GetCPUAllocator()->allocate(size);
    Block* block = new Block(idle().take((size + kRound - 1) / kRound * kRound));
    return {block->data, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
};

}  // namespace

at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format) {
  static OutputAllocator allocator;
  return at::detail::empty_generic(sizes, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), format);
}

}  // namespace dynprune
