// The CUDA kernels' bodies, block by block on the CPU (see emulation.h), against plain loops in float64. Built with
// DYNPRUNE_BUILD_TESTS; no GPU and no CUDA is needed.
#include "check.h"

int main() {
  test_emulation();
  test_index();
  test_linear();
  test_conv2d();
  test_depthwise();
  test_sparse_input();
  test_gather();
  test_lstm();
  const emulation::Counts& c = emulation::counts();
  std::printf("%lld launches, %lld blocks, %lld tensor core products, %lld barriers, %lld copies\n",
              static_cast<long long>(c.launches), static_cast<long long>(c.blocks), static_cast<long long>(c.products),
              static_cast<long long>(c.barriers), static_cast<long long>(c.copies));
  std::printf("%d passed, %d failed\n", check::passed, check::failed);
  return check::failed > 0;
}
