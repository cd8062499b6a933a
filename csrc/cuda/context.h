// What every op on a GPU begins with: the device of its input, PyTorch's stream there, and memory to work in.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "checks.h"
#include "cuda/types.h"

namespace dynprune::cuda {

class Context {
 public:
  Context(const char* op, const at::Tensor& input)
      : op_(op), guard_(input.device()), stream_(c10::cuda::getCurrentCUDAStream().stream()) {}

  Stream stream() const { return stream_; }
  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  int shared_limit() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

  void expect(Status status) const {
    if (status != 0) (void)cudaGetLastError();  // reported here: the next op's check must not find it
    TORCH_CHECK(status == 0, op_, ": expected a launch without errors, got ",
                cudaGetErrorString(static_cast<cudaError_t>(status)));
  }

  // The first `zeros` bytes are zero. Its memory is used again as soon as the stream has got past this op.
  at::Tensor workspace(int64_t bytes, int64_t zeros) const {
    if (bytes == 0) return {};
    const at::Device device(at::kCUDA, guard_.current_device().index());
    at::Tensor t = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device));
    if (zeros > 0) expect(cudaMemsetAsync(t.mutable_data_ptr(), 0, static_cast<size_t>(zeros), stream_));
    return t;
  }

 private:
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    expect(cudaDeviceGetAttribute(&value, which, guard_.current_device().index()));
    return value;
  }

  const char* op_;
  c10::cuda::CUDAGuard guard_;
  Stream stream_;
};

inline void* data_or_null(const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

// tf32: whether PyTorch allows it for this kind of layer.
inline Number number_of(at::ScalarType type, bool tf32) {
  if (type == at::kBFloat16) return Number::bf16;
  if (type == at::kHalf) return Number::f16;
  return tf32 ? Number::tf32 : Number::f32;
}

// What can be checked of an index list without waiting for the device: that its values increase is the caller's word.
inline const int64_t* expect_index_list(const char* op, const char* name, const at::Tensor& t) {
  DYNPRUNE_EXPECT(t.dim() == 1 && t.scalar_type() == at::kLong && t.is_contiguous() && t.is_cuda(), op,
                  c10::str("contiguous int64 ", name, " [n] on the GPU"), t.scalar_type(), " ", t.sizes());
  return t.const_data_ptr<int64_t>();
}

// Numbers that are known to the device alone; nullptr: there are none, and the shapes tell.
inline const int* expect_count(const char* op, const char* name, const std::optional<at::Tensor>& t,
                               int64_t length = 1) {
  if (!t.has_value()) return nullptr;
  DYNPRUNE_EXPECT(
      t->dim() == 1 && t->size(0) == length && t->is_contiguous() && t->scalar_type() == at::kInt && t->is_cuda(), op,
      c10::str("int32 ", name, " [", length, "] on the GPU"), t->scalar_type(), " ", t->sizes());
  return t->const_data_ptr<int>();
}

}  // namespace dynprune::cuda
