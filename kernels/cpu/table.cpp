#include "kernels.h"

#define DYNPRUNE_NAME_(isa) #isa
#define DYNPRUNE_NAME(isa) DYNPRUNE_NAME_(isa)

namespace dynprune::DYNPRUNE_ISA {

const Kernels* table() {
  static const Kernels kernels{DYNPRUNE_NAME(DYNPRUNE_ISA),
                               linear_range,
                               master_linear_range,
                               conv2d_range,
                               conv2d_plan,
                               bf16_plan,
                               bf16_range,
                               lstm_range,
                               max_pool2d_range,
                               sparse_input_range,
                               pack_range};
  return &kernels;
}

}  // namespace dynprune::DYNPRUNE_ISA
