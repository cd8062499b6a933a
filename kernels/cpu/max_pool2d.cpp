#include "max_pool2d.h"

#include "kernels.h"
#include "simd.h"

namespace dynprune::DYNPRUNE_ISA {

namespace {

// The taps of a window that lie in the image: [first, last), at start + tap * dilation.
struct Window {
  int64_t start, first, last;
};

Window window_of(const PoolAxis& a, int64_t o) {
  Window w{o * a.stride - a.padding, 0, a.kernel};
  while (w.first < w.last && w.start + w.first * a.dilation < 0) ++w.first;
  while (w.last > w.first && w.start + (w.last - 1) * a.dilation >= a.in) --w.last;
  return w;
}

// NaN wins, as in PyTorch.
inline Floats greater(Floats best, Floats v) { return select((v > best) | (v != v), v, best); }

// `whole`: a whole vector may be stored though it is more than the channels that are left.
template <bool kPart>
inline void pool_channels(const MaxPool2dParams& p, const float* image, const Window& h, const Window& w, int64_t c,
                          int64_t lanes, bool whole, float* to) {
  Floats best = splat(-__builtin_inff());
  for (int64_t i = h.first; i < h.last; ++i) {
    const float* row = image + (h.start + i * p.h.dilation) * p.stride_h + c;
    for (int64_t j = w.first; j < w.last; ++j) {
      const float* from = row + (w.start + j * p.w.dilation) * p.stride_w;
      best = greater(best, kPart ? load_part(from, lanes) : load(from));
    }
  }
  if (kPart && !whole) {
    store_part(to + c, best, lanes);
  } else {
    store(to + c, best);
  }
}

}  // namespace

void max_pool2d_range(const MaxPool2dParams& p, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const float* image = p.input + task / p.h.out * p.stride_n;
    const Window h = window_of(p.h, task % p.h.out);
    float* to = p.output + task * p.w.out * p.channels;
    for (int64_t ow = 0; ow < p.w.out; ++ow, to += p.channels) {
      const Window w = window_of(p.w, ow);
      int64_t c = 0;
      for (; c + kLanes <= p.channels; c += kLanes) pool_channels<false>(p, image, h, w, c, kLanes, true, to);
      // What a whole vector spills into the next pixels of the row is written later; masked stores are slow.
      const bool whole = (p.w.out - ow) * p.channels >= c + kLanes;
      if (c < p.channels) pool_channels<true>(p, image, h, w, c, p.channels - c, whole, to);
    }
  }
}

}  // namespace dynprune::DYNPRUNE_ISA
