#include "run.h"

#include <mutex>
#include <set>
#include <string_view>
#include <thread>

namespace dynprune {

const Kernels& kernels() {
  static const Kernels& selected = []() -> const Kernels& {
    const char* error = nullptr;
    const Kernels* found = select_kernels(&error);
    TORCH_CHECK_VALUE(found != nullptr, error, ", got ", std::getenv("DYNPRUNE_CPU_ISA"));
    return *found;
  }();
  return selected;
}

bool on_avx512() {
  const std::string_view isa = kernels().isa;
  return isa == "avx512" || isa == "amx";
}

int64_t thread_count() {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    std::lock_guard<std::mutex> lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  return static_cast<int64_t>(seen.size());
}

int64_t row_tile(int64_t rows, int64_t panels) {
  const int64_t threads = most_threads();
  const int64_t tiles = (rows + kRowTile - 1) / kRowTile;
  if (panels == 0 || tiles * panels >= threads) return kRowTile;
  const int64_t wanted = (threads + panels - 1) / panels;
  return std::clamp<int64_t>((rows + wanted - 1) / wanted, 8, kRowTile);
}

ActivationSpec parse_activation(const char* op, c10::string_view name, double slope) {
  static constexpr std::pair<const char*, Activation> kNames[] = {
      {"none", Activation::none}, {"relu", Activation::relu},           {"leaky_relu", Activation::leaky_relu},
      {"gelu", Activation::gelu}, {"gelu_tanh", Activation::gelu_tanh}, {"silu", Activation::silu},
      {"tanh", Activation::tanh}, {"sigmoid", Activation::sigmoid},
  };
  for (const auto& [known, kind] : kNames) {
    if (name == known) return {kind, static_cast<float>(slope)};
  }
  TORCH_CHECK_VALUE(
      false, op, ": expected an activation out of none, relu, leaky_relu, gelu, gelu_tanh, silu, tanh, sigmoid, got ",
      std::string(name));
}

}  // namespace dynprune
