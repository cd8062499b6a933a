#include "check.h"

const std::vector<ConvShape> kConvShapes = {
    {"one of each", 1, 1, 1, axis(1, 1, 1, 0, 1), axis(1, 1, 1, 0, 1), true, false},
    {"1x1", 2, 17, 65, axis(9, 1, 1, 0, 1), axis(8, 1, 1, 0, 1), true, false},
    {"1x1 nchw", 2, 5, 16, axis(5, 1, 1, 0, 1), axis(4, 1, 1, 0, 1), false, false},
    {"1x1 gathered", 2, 5, 17, axis(5, 1, 1, 0, 1), axis(4, 1, 1, 0, 1), true, true},
    {"3x3 patches", 2, 3, 15, axis(9, 3, 1, 1, 1, 2, 2), axis(11, 3, 1, 1, 1, 2, 2), true, false},
    {"3x3 rows", 2, 17, 63, axis(8, 3, 1, 1, 1, 2, 2), axis(9, 3, 1, 1, 1, 2, 2), true, false},
    {"3x3 rows nchw", 1, 9, 64, axis(7, 3, 1, 1, 1), axis(6, 3, 1, 1, 1), false, false},
    {"3x3 gathered", 1, 9, 17, axis(7, 3, 1, 1, 1), axis(6, 3, 1, 1, 1), true, true},
    {"3x3 stride 3 dilation 2", 2, 9, 20, axis(13, 3, 3, 2, 2, 3, 2), axis(12, 3, 3, 2, 2, 2, 3), true, false},
    {"3x3 long rows", 1, 9, 16, axis(3, 3, 1, 1, 1), axis(70, 3, 1, 1, 1), true, false},
    {"3x3 many blocks", 1, 17, 4, axis(44, 3, 1, 1, 1, 2, 2), axis(40, 3, 1, 1, 1, 1, 2), true, false},
    {"5x5 larger than the image", 2, 5, 17, axis(2, 5, 1, 2, 1, 3, 3), axis(3, 5, 1, 2, 1, 3, 3), true, false},
    {"7x7 stride 2", 1, 3, 16, axis(12, 7, 2, 3, 1, 4, 3), axis(13, 7, 2, 3, 1, 4, 4), false, false},
    {"2x2 padding 3", 1, 2, 130, axis(3, 2, 1, 3, 1, 3, 3), axis(3, 2, 1, 3, 1, 3, 3), true, false},
    {"3x3 without padding", 2, 13, 72, axis(9, 3, 1, 0, 1), axis(9, 3, 1, 0, 1), true, false},
    {"3x3 wide padding", 1, 16, 130, axis(5, 3, 1, 4, 1, 4, 4), axis(4, 3, 1, 5, 1, 4, 4), true, false},
    {"3x3 one column", 2, 11, 24, axis(6, 3, 1, 1, 1, 2, 2), axis(1, 3, 1, 1, 1, 2, 2), true, false},
    {"5x3 stride 2 along the height", 2, 10, 40, axis(11, 5, 2, 2, 1, 3, 3), axis(10, 3, 1, 1, 1, 2, 2), true, false},
    {"1x3 nchw", 2, 10, 17, axis(4, 1, 1, 0, 1), axis(21, 3, 1, 0, 1), false, false},
    {"3x3 dilation 3 along the height", 1, 33, 56, axis(9, 3, 1, 3, 3, 2, 2), axis(8, 3, 1, 1, 1, 1, 1), true, false},
    {"no channels", 1, 0, 17, axis(4, 3, 1, 1, 1), axis(4, 3, 1, 1, 1), true, false},
    {"depthwise 1x1", 2, 5, 5, axis(4, 1, 1, 0, 1), axis(3, 1, 1, 0, 1), true, false, true},
    {"depthwise 3x3", 2, 33, 33, axis(9, 3, 1, 1, 1, 2, 2), axis(21, 3, 1, 1, 1, 2, 2), true, false, true},
    {"depthwise 3x3 nchw", 2, 7, 7, axis(9, 3, 1, 1, 1), axis(21, 3, 1, 1, 1), false, false, true},
    {"depthwise 3x3 gathered", 1, 66, 66, axis(5, 3, 1, 1, 1), axis(6, 3, 1, 1, 1), true, true, true},
    {"depthwise 3x3 stride 2", 2, 47, 47, axis(9, 3, 2, 1, 1), axis(37, 3, 2, 1, 1), true, false, true},
    {"depthwise 3x3 dilation 2", 1, 8, 8, axis(9, 3, 1, 2, 2, 3, 2), axis(14, 3, 2, 2, 2, 2, 3), true, false, true},
    {"depthwise 3x3 many blocks", 1, 17, 17, axis(44, 3, 1, 1, 1), axis(40, 3, 1, 0, 1), true, false, true},
    {"depthwise 5x5", 1, 12, 12, axis(7, 5, 1, 2, 1, 3, 3), axis(20, 5, 1, 2, 1, 3, 3), true, false, true},
    {"depthwise 5x5 stride 2", 2, 130, 130, axis(8, 5, 2, 2, 1), axis(21, 5, 2, 2, 1), true, false, true},
    {"depthwise 5x5 larger than the image", 2, 9, 9, axis(2, 5, 1, 2, 1), axis(3, 5, 1, 2, 1), true, false, true},
    {"depthwise 1x7 stride 3", 1, 20, 20, axis(3, 1, 1, 0, 1), axis(40, 7, 3, 3, 1, 4, 4), true, false, true},
    {"depthwise 5x5 colliding", 1, 512, 512, axis(5, 5, 1, 2, 1), axis(6, 5, 1, 2, 1), true, false, true},
    {"depthwise no channels", 1, 0, 0, axis(4, 3, 1, 1, 1), axis(4, 3, 1, 1, 1), true, false, true},
};

namespace {

int64_t taps_cut(const dynprune::ConvAxis& a, int64_t o, bool low) {
  int64_t cut = 0;
  for (int64_t k = 0; k < a.kernel; ++k) {
    const int64_t i = o * a.stride - a.padding + k * a.dilation;
    cut += low ? i < 0 : i >= a.in;
  }
  return cut;
}

int64_t brute_zone(const dynprune::ConvAxis& a, int64_t o) {
  return std::min(taps_cut(a, o, true), a.zones_low - 1) * a.zones_high +
         std::min(taps_cut(a, o, false), a.zones_high - 1);
}

}  // namespace

// The reference of a convolution with ReLU: element k of a unit's weights is [channel][tap], or [tap] if depthwise.
std::vector<double> convolved(const ConvShape& s, const dynprune::Convolution& p, const std::vector<int64_t>& indices,
                              const std::vector<float>& input, const std::vector<float>& master,
                              const std::vector<float>& bias) {
  const int64_t taps = s.h.kernel * s.w.kernel, depth = s.depthwise ? taps : taps * s.channels;
  std::vector<double> expected;
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t pixel = 0; pixel < s.h.out * s.w.out; ++pixel) {
      const int64_t oh = pixel / s.w.out, ow = pixel % s.w.out;
      const int64_t zone = brute_zone(s.h, oh) * dynprune::zone_count(s.w) + brute_zone(s.w, ow);
      for (int64_t u = 0; u < s.units; ++u) {
        double sum = bias[zone * s.units + u];
        for (int64_t k = 0; k < depth; ++k) {
          const int64_t c = s.depthwise ? u : k / taps, kh = k % taps / s.w.kernel, kw = k % s.w.kernel;
          const int64_t ih = oh * s.h.stride - s.h.padding + kh * s.h.dilation;
          const int64_t iw = ow * s.w.stride - s.w.padding + kw * s.w.dilation;
          if (ih < 0 || ih >= s.h.in || iw < 0 || iw >= s.w.in) continue;
          const int64_t at = n * p.stride_n + indices[c] * p.stride_c + ih * p.stride_h + iw * p.stride_w;
          sum += double(input[at]) * master[u * depth + k];
        }
        expected.push_back(std::max(sum, 0.0));
      }
    }
  }
  return expected;
}

namespace {

// As one group among others: `expected` comes between units of a neighbour, which nobody may write to.
void check_group(const std::string& what, dynprune::Conv2dParams p, const std::vector<double>& expected,
                 const dynprune::Kernels& kernels) {
  constexpr int64_t kBefore = 2, kAfter = 3;
  p.pixel_units = kBefore + p.units + kAfter;
  const int64_t pixels = p.batch * p.h.out * p.w.out;
  Guarded<float> all(pixels * p.pixel_units), own(pixels * p.units);
  p.output = all.data() + kBefore;
  kernels.conv2d(p, nullptr, 0, dynprune::conv2d_tasks(p));
  bool untouched = true;
  for (int64_t i = 0; i < pixels * p.pixel_units; ++i) {
    const int64_t unit = i % p.pixel_units - kBefore;
    if (unit >= 0 && unit < p.units) {
      own.data()[i / p.pixel_units * p.units + unit] = all[i];
    } else {
      untouched = untouched && std::isnan(all[i]);
    }
  }
  expect(close(own, expected), what + " as a group: output");
  expect(untouched && all.intact(), what + " as a group: other units");
}

void test_shape(const dynprune::Kernels& kernels, const ConvShape& s) {
  const std::string what = std::string(kernels.isa) + " conv2d " + s.name;
  const int64_t all = s.gather ? 2 * s.channels : s.channels;  // channels of the input
  const int64_t taps = s.h.kernel * s.w.kernel, depth = s.depthwise ? taps : taps * s.channels;
  dynprune::Conv2dParams p{};
  p.stride_n = all * s.h.in * s.w.in;
  p.stride_c = s.channels_last ? 1 : s.h.in * s.w.in;
  p.stride_h = s.channels_last ? s.w.in * all : s.w.in;
  p.stride_w = s.channels_last ? all : 1;
  const int64_t zones = dynprune::zone_count(s.h) * dynprune::zone_count(s.w);
  const std::vector<float> input = random_floats(s.batch * p.stride_n), master = random_floats(s.units * depth);
  const std::vector<float> bias = random_floats(zones * s.units);
  std::vector<int64_t> columns, indices;  // the master is [units][channels][taps], the packed depth [taps][channels]
  for (int64_t tap = 0; tap < taps; ++tap) {
    for (int64_t c = 0; c < depth / taps; ++c) columns.push_back(c * taps + tap);
  }
  for (int64_t c = 0; c < s.channels; ++c) indices.push_back(s.gather ? 2 * c + 1 : c);
  const std::vector<float> weight = pack(kernels, master, s.units, columns);

  const std::vector<double> expected = convolved(s, p, indices, input, master, bias);
  p.input = input.data();
  p.input_indices = s.gather ? indices.data() : nullptr;
  p.weight = weight.data();
  p.bias = bias.data();
  p.batch = s.batch;
  p.channels = s.channels;
  p.units = s.units;
  p.pixel_units = s.units;
  p.depthwise = s.depthwise;
  p.h = s.h;
  p.w = s.w;
  p.activation.kind = dynprune::Activation::relu;
  const bool three_wide = !s.depthwise && s.w.kernel == 3 && s.w.stride == 1 && s.w.dilation == 1;
  for (int64_t threads : {1, 4, 1000}) {
    kernels.conv2d_plan(p, threads);
    expect(p.block_rows >= 1 && p.block_rows <= s.h.out, what + ": block rows");
    expect(three_wide || !p.winograd, what + ": Winograd only for kernels three columns wide");
    for (bool winograd : {false, true}) {
      if (winograd && !three_wide) continue;
      p.winograd = winograd;
      for (int64_t parts : {int64_t{1}, std::max<int64_t>(1, s.depthwise ? 1 : dynprune::panel_count(s.units))}) {
        p.unit_parts = parts;
        const std::string how = what + " in blocks of " + std::to_string(p.block_rows) + " and " +
                                std::to_string(parts) + " parts" + (winograd ? ", Winograd" : "");
        check(how, p, dynprune::conv2d_tasks(p), expected, kernels.conv2d);
      }
    }
  }
  if (zones == 1) check_group(what, p, expected, kernels);
}

void test_axis(const dynprune::ConvAxis& a) {
  bool low = true, high = true, zone = true;
  for (int64_t o = 0; o < a.out; ++o) {
    low = low && dynprune::cut_low(a, o) == taps_cut(a, o, true);
    high = high && dynprune::cut_high(a, o) == taps_cut(a, o, false);
    zone = zone && dynprune::zone_of(a, o) == brute_zone(a, o);
  }
  const std::string what = "axis in " + std::to_string(a.in) + " kernel " + std::to_string(a.kernel) + " stride " +
                           std::to_string(a.stride) + " padding " + std::to_string(a.padding) + " dilation " +
                           std::to_string(a.dilation);
  expect(low, what + ": cut_low");
  expect(high, what + ": cut_high");
  expect(zone, what + ": zone_of");
}

}  // namespace

void test_axes() {
  for (int64_t code = 0; code < 9 * 7 * 3 * 4 * 3; ++code) {
    const int64_t in = code % 9 + 1, kernel = code / 9 % 7 + 1, stride = code / 63 % 3 + 1;
    const int64_t padding = code / 189 % 4, dilation = code / 756 + 1;
    if (in + 2 * padding < (kernel - 1) * dilation + 1) continue;
    test_axis(axis(in, kernel, stride, padding, dilation, code % 4 + 1, code % 3 + 1));
  }
}

void test_conv2d(const dynprune::Kernels& kernels) {
  for (const ConvShape& shape : kConvShapes) test_shape(kernels, shape);
}
