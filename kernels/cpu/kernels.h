// The table of kernels: one per instruction set, chosen once. Dispatch, tests and benchmarks share it.
#pragma once

#include "bfloat16.h"
#include "conv2d.h"
#include "linear.h"
#include "lstm.h"
#include "master_linear.h"
#include "max_pool2d.h"
#include "pack.h"
#include "sparse_input.h"

namespace dynprune {

struct Kernels {
  const char* isa;
  void (*linear)(const LinearParams&, double* usage, int64_t begin, int64_t end);
  void (*master_linear)(const MasterLinearParams&, double* usage, int64_t begin, int64_t end);
  void (*conv2d)(const Conv2dParams&, double* usage, int64_t begin, int64_t end);
  // Fills in the fields of `p` that say how to go about it.
  void (*conv2d_plan)(Conv2dParams& p, int64_t threads);
  void (*bf16_plan)(Bf16Params& p, int64_t threads);  // likewise
  void (*bf16)(const Bf16Params&, double* usage, int64_t begin, int64_t end);
  void (*lstm)(const LstmParams&, double* usage, int64_t begin, int64_t end);
  void (*max_pool2d)(const MaxPool2dParams&, int64_t begin, int64_t end);
  void (*sparse_input)(const SparseInputParams&, double* usage, int64_t begin, int64_t end);
  void (*pack)(const PackParams&, int64_t begin, int64_t end);
};

// Null where the instruction set was not compiled for this architecture or the CPU lacks it.
const Kernels* find_kernels(const char* isa);

// The best table of this CPU, or the one that DYNPRUNE_CPU_ISA names (amx, avx512, avx2, plain). Null with `error`
// set, a sentence, if that name is unknown or the CPU lacks it.
const Kernels* select_kernels(const char** error);

#ifdef DYNPRUNE_ISA
namespace DYNPRUNE_ISA {
void linear_range(const LinearParams&, double*, int64_t, int64_t);
void master_linear_range(const MasterLinearParams&, double*, int64_t, int64_t);
void conv2d_range(const Conv2dParams&, double*, int64_t, int64_t);
void conv2d_plan(Conv2dParams&, int64_t);
void bf16_plan(Bf16Params&, int64_t);
void bf16_range(const Bf16Params&, double*, int64_t, int64_t);
void lstm_range(const LstmParams&, double*, int64_t, int64_t);
void max_pool2d_range(const MaxPool2dParams&, int64_t, int64_t);
void sparse_input_range(const SparseInputParams&, double*, int64_t, int64_t);
void pack_range(const PackParams&, int64_t, int64_t);
const Kernels* table();
}  // namespace DYNPRUNE_ISA
#endif

}  // namespace dynprune
