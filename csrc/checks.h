// Argument checks. Every message reads "<op>: expected <what>, got <value>", as do those of the reference ops.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <utility>

namespace dynprune {

#define DYNPRUNE_EXPECT(condition, op, expected, ...) \
  TORCH_CHECK_VALUE(condition, op, ": expected ", expected, ", got ", ::c10::str(__VA_ARGS__))

inline void expect_device(const char* op, const char* name, const at::Tensor& t, at::DeviceType device) {
  DYNPRUNE_EXPECT(t.device().type() == device, op, c10::str("a ", name, " on the ", device == at::kCPU ? "CPU" : "GPU"),
                  t.device());
}

inline void expect_float(const char* op, const char* name, const at::Tensor& t, at::DeviceType device = at::kCPU) {
  DYNPRUNE_EXPECT(t.scalar_type() == at::kFloat, op, c10::str("a float32 ", name), t.scalar_type());
  expect_device(op, name, t, device);
}

// What a layer computes with: float32 or bfloat16, on a GPU float16 too, the same for input and weight. Biases are
// float32 beside all of them.
inline void expect_operands(const char* op, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, at::DeviceType device = at::kCPU) {
  const at::ScalarType type = input.scalar_type();
  if (device == at::kCPU) {
    DYNPRUNE_EXPECT(type == at::kFloat || type == at::kBFloat16, op, "a float32 or bfloat16 input", type);
  } else {
    DYNPRUNE_EXPECT(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op,
                    "a float32, bfloat16 or float16 input", type);
  }
  DYNPRUNE_EXPECT(weight.scalar_type() == type, op, c10::str("a weight of the input's dtype, ", type),
                  weight.scalar_type());
  expect_device(op, "input", input, device);
  expect_device(op, "weight", weight, device);
  if (bias.has_value()) expect_float(op, "bias", *bias, device);
}

// Strictly increasing int64 in [0, limit): an index list names channels in their original order.
inline const int64_t* expect_indices(const char* op, const char* name, const at::Tensor& t, int64_t limit) {
  DYNPRUNE_EXPECT(t.dim() == 1 && t.scalar_type() == at::kLong && t.is_contiguous() && t.device().is_cpu(), op,
                  c10::str("contiguous int64 ", name, " [n] on the CPU"), t.scalar_type(), " ", t.sizes());
  const int64_t* p = t.const_data_ptr<int64_t>();
  int64_t previous = -1;
  for (int64_t i = 0; i < t.numel(); ++i) {
    DYNPRUNE_EXPECT(p[i] > previous && p[i] < limit, op, c10::str(name, " strictly increasing in [0, ", limit, ")"),
                    p[i], " after ", previous);
    previous = p[i];
  }
  return p;
}

// usage: float64 [4, units], rows contiguous; it is added to.
inline void expect_usage(const char* op, const at::Tensor& t, int64_t units, at::DeviceType device = at::kCPU) {
  DYNPRUNE_EXPECT(t.dim() == 2 && t.size(0) == 4 && t.size(1) == units && t.scalar_type() == at::kDouble &&
                      (units < 2 || t.stride(1) == 1) && t.device().type() == device,
                  op, c10::str("float64 usage [4, ", units, "] with contiguous rows"), t.scalar_type(), " ", t.sizes());
}

// Numbers of units and inputs in device memory are for captured graphs.
inline void expect_no_counts(const char* op, const std::optional<at::Tensor>& unit_count,
                             const std::optional<at::Tensor>& depth_count) {
  DYNPRUNE_EXPECT(!unit_count.has_value() && !depth_count.has_value(), op,
                  "no unit_count and no depth_count on the CPU, where the host knows them", "one");
}

}  // namespace dynprune
