#include <cstring>

#include "check.h"

namespace {

uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
}

float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Values and what becomes of them in bfloat16.
std::vector<uint16_t> rounded(std::vector<float>& values) {
  std::vector<uint16_t> halves;
  for (float& value : values) {
    halves.push_back(to_bf16(value));
    value = from_bf16(halves.back());
  }
  return halves;
}

// Packed panels [depth, width] to bfloat16: pairs of rows side by side, and behind them the last row of an odd depth.
std::vector<uint16_t> paired(const std::vector<float>& packed, int64_t units, int64_t depth) {
  std::vector<uint16_t> result;
  for (int64_t unit = 0; unit < units; unit += dynprune::kPanel) {
    const int64_t width = dynprune::padded_units(std::min(dynprune::kPanel, units - unit));
    const float* panel = packed.data() + unit * depth;
    for (int64_t k = 0; k + 1 < depth; k += 2) {
      for (int64_t j = 0; j < 2 * width; ++j) result.push_back(to_bf16(panel[(k + j % 2) * width + j / 2]));
    }
    for (int64_t j = 0; j < width && depth % 2 == 1; ++j) result.push_back(to_bf16(panel[(depth - 1) * width + j]));
  }
  return result;
}

bool has_tiles(const dynprune::Kernels& kernels) {
  return std::strcmp(kernels.isa, "amx") == 0 || std::strcmp(kernels.isa, "emulated") == 0;
}

void test_shape(const dynprune::Kernels& kernels, const ConvShape& s) {
  if (!s.channels_last || s.gather || s.depthwise) return;  // what the kernel takes
  const std::string what = std::string(kernels.isa) + " bf16 " + s.name;
  const int64_t taps = s.h.kernel * s.w.kernel, depth = taps * s.channels;
  dynprune::Bf16Params p{};
  p.stride_c = 1;
  p.stride_w = s.channels;
  p.stride_h = s.w.in * s.channels;
  p.stride_n = s.h.in * p.stride_h;
  std::vector<float> input = random_floats(s.batch * p.stride_n), master = random_floats(s.units * depth);
  const std::vector<uint16_t> halves = rounded(input);
  rounded(master);
  const std::vector<float> bias = random_floats(dynprune::zone_count(s.h) * dynprune::zone_count(s.w) * s.units);
  std::vector<int64_t> columns, indices;
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < s.channels; ++c) columns.push_back(c * taps + tap);
  }
  for (int64_t c = 0; c < s.channels; ++c) indices.push_back(c);
  const std::vector<uint16_t> weight = paired(pack(kernels, master, s.units, columns), s.units, depth);
  const std::vector<double> expected = convolved(s, p, indices, input, master, bias);
  p.input = halves.data();
  p.weight = weight.data();
  p.bias = bias.data();
  p.batch = s.batch;
  p.channels = s.channels;
  p.units = s.units;
  p.pixel_units = s.units;
  p.h = s.h;
  p.w = s.w;
  p.activation.kind = dynprune::Activation::relu;
  const auto run = [&](const std::string& how) {
    Guarded<uint16_t> output(static_cast<int64_t>(expected.size()), 0x7fc0);
    Guarded<double> usage(dynprune::kUsageRows * dynprune::padded_units(p.units), 0.0);
    p.output = output.data();
    const int64_t tasks = dynprune::bf16_tasks(p);
    kernels.bf16(p, usage.data(), 0, tasks / 2);
    kernels.bf16(p, usage.data(), tasks / 2, tasks);
    expect(!unreleased, what + how + ": gemm_release at the end of a range");
    Guarded<float> wide(static_cast<int64_t>(expected.size()));
    for (size_t i = 0; i < expected.size(); ++i) wide.data()[i] = from_bf16(output[i]);
    expect(close(wide, expected, 5e-3), what + how + ": output");
    expect(output.intact(), what + how + ": guard zones of the output");
    expect(p.units == 0 || close(usage, usage_of(expected, p.units), 5e-3), what + how + ": usage");
    expect(usage.intact(), what + how + ": guard zones of the usage");
  };
  p.row_tile = dynprune::kRowTile;
  kernels.bf16_plan(p, 2);
  run(", as planned");
  p.block_rows = 0;
  for (int64_t tile : {int64_t{7}, dynprune::kRowTile}) {
    p.row_tile = tile;
    p.group = tile == 7 ? 3 : 1;
    run(", gathered");
  }
  if (!has_tiles(kernels) || taps == 1 || s.channels == 0) return;
  for (int64_t rows : {int64_t{1}, int64_t{3}, s.h.out}) {
    p.block_rows = rows;
    p.block_units = rows == 3 ? 2 * dynprune::kPanel : dynprune::kPanel;
    p.joined = true;
    if (s.w.dilation == 1) run(", joined");
    p.joined = false;
    const bool steps = s.h.stride == 1 && s.w.stride == 1;
    if (steps && s.w.padding <= (s.w.kernel - 1) * s.w.dilation) run(", staged");
  }
}

}  // namespace

void test_bf16(const dynprune::Kernels& kernels) {
  for (const ConvShape& shape : kConvShapes) test_shape(kernels, shape);
}
