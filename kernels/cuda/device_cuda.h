// device.h on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#define DYNPRUNE_DEVICE __device__ __forceinline__
#define DYNPRUNE_HOST_DEVICE __host__ __device__ __forceinline__
#define DYNPRUNE_UNROLL _Pragma("unroll")
#define DYNPRUNE_NO_UNROLL _Pragma("unroll 1")

namespace dynprune::cuda {

struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

DYNPRUNE_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
DYNPRUNE_DEVICE Position block() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}
DYNPRUNE_DEVICE char* shared() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}
DYNPRUNE_DEVICE void sync() { __syncthreads(); }
DYNPRUNE_DEVICE void sync_warp() { __syncwarp(); }
DYNPRUNE_DEVICE unsigned lane_votes(bool vote) { return __ballot_sync(0xffffffffu, vote); }

DYNPRUNE_DEVICE int ones(unsigned bits) { return __popc(bits); }

DYNPRUNE_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes to shared memory, of which the first `bytes` are read and the others are zero. Through L2 only.
DYNPRUNE_DEVICE void copy_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
DYNPRUNE_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most `kPending` of this thread's committed groups are still on their way.
template <int kPending>
DYNPRUNE_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four matrices of 8 rows of 16 bytes: lane l names row l % 8 of matrix l / 8, and gets of each matrix the four bytes
// at l % 4 of row l / 4.
DYNPRUNE_DEVICE void load_matrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// sum [16, 8] += a [16, 32 bytes] * b [8, 32 bytes]: the tensor cores' product of 16 halves, or 8 tf32 numbers, deep.
template <Number number>
DYNPRUNE_DEVICE void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (number == Number::bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (number == Number::f16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

DYNPRUNE_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
DYNPRUNE_DEVICE float bits_float(uint32_t x) { return __uint_as_float(x); }
DYNPRUNE_DEVICE uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(r) : "f"(x));
  return r;
}
DYNPRUNE_DEVICE uint16_t to_f16(float x) {
  uint16_t r;
  asm("cvt.rn.f16.f32 %0, %1;\n" : "=h"(r) : "f"(x));
  return r;
}
DYNPRUNE_DEVICE uint16_t to_bf16(float x) {
  uint16_t r;
  asm("cvt.rn.bf16.f32 %0, %1;\n" : "=h"(r) : "f"(x));
  return r;
}
DYNPRUNE_DEVICE float from_f16(uint16_t x) {
  float r;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(r) : "h"(x));
  return r;
}
DYNPRUNE_DEVICE float from_bf16(uint16_t x) { return __uint_as_float(static_cast<uint32_t>(x) << 16); }

// Between blocks, by one thread of each behind sync(): what its block wrote is seen by whoever sees the new count, and
// it sees, behind the next sync() with its block, what the blocks counted before wrote. One fence a block, not one a
// thread.
DYNPRUNE_DEVICE unsigned increment(unsigned* counter) {
  unsigned before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;\n" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
// Not from L1, where another block's writes do not show.
DYNPRUNE_DEVICE Float4 load_fresh(const Float4* p) {
  const float4 v = __ldcg(reinterpret_cast<const float4*>(p));
  return {v.x, v.y, v.z, v.w};
}
// Until `counter` is at least `target`; to be called by one thread of a block whose grid runs together.
DYNPRUNE_DEVICE void await(const unsigned* counter, unsigned target) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < target);
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::run(params);
}

template <class Kernel>
Status launch(const Grid& grid, const typename Kernel::Params& params, Stream stream) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  // Raised for this device each time: it costs less than finding out whether it is. To the most that a block may have,
  // so that another thread's smaller launch of this kernel takes nothing away.
  if (grid.shared_bytes > 48 * 1024) {
    int device = 0, most = 0;
    cudaError_t raised = cudaGetDevice(&device);
    if (raised == cudaSuccess) raised = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (raised == cudaSuccess) {
      raised = cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    }
    if (raised != cudaSuccess) return raised;
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  if (grid.together) {
    void* arguments[] = {const_cast<typename Kernel::Params*>(&params)};
    return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(entry<Kernel>), blocks, dim3(Kernel::kThreads),
                                       arguments, static_cast<size_t>(grid.shared_bytes), stream);
  }
  entry<Kernel><<<blocks, Kernel::kThreads, static_cast<size_t>(grid.shared_bytes), stream>>>(params);
  return cudaGetLastError();
}

}  // namespace dynprune::cuda
