// Rotary embedding of adjacent pairs, alone and fused with the RMS norm of queries and keys.
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd.h"
#include "backend/cpu/simd_sum.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

/// One token's angles, a number per element: a pair becomes x * cos + swapped x * sin.
struct Angles {
  alignas(64) float cos[kMaxHeadWidth];
  alignas(64) float sin[kMaxHeadWidth];

  void spread(const float* cos_half, const float* sin_half, int64_t width, bool inverse) {
    const float sign = inverse ? -1.0f : 1.0f;
    for (int64_t i = 0; i < width / 2; ++i) {
      cos[2 * i] = cos[2 * i + 1] = cos_half[i];
      sin[2 * i] = -sign * sin_half[i];
      sin[2 * i + 1] = sign * sin_half[i];
    }
  }
  template <class Get>
  DF_INLINE Vec turn(Vec v, Get get) const {
    return v * get(cos) + swap_pairs(v) * get(sin);
  }
};

/// Widths past Angles go piece by piece.
void rope(Rows out, ConstRows x, int64_t heads, int64_t width, const float* cos, const float* sin,
          bool inverse) {
  Angles angles;
  for (int64_t begin = 0; begin < width; begin += kMaxHeadWidth) {
    const int64_t count = width - begin < kMaxHeadWidth ? width - begin : kMaxHeadWidth;
    angles.spread(cos + begin / 2, sin + begin / 2, count, inverse);
    for (int64_t head = 0; head < heads; ++head) {
      const float* from = x.base + head * x.step + begin;
      float* to = out.base + head * out.step + begin;
      for_vectors(count, [&](auto get, auto put) { put(to, angles.turn(get(from), get)); });
    }
  }
}

void qk_norm_rope(Rows out, float* rstd, ConstRows x, int64_t heads, int64_t width, const float* weight,
                  const float* cos, const float* sin, float eps) {
  Angles angles;
  angles.spread(cos, sin, width, false);
  for_groups(heads, group_size(width), [&](int64_t first, int64_t count) {
    for (int64_t head = first; head < first + count; ++head) {
      const float* from = x.base + head * x.step;
      const double squares = sum_one(width, [from](auto get) {
        const Vec v = get(from);
        return v * v;
      });
      const double mean = squares / static_cast<double>(width);
      rstd[head] = 1.0f / __builtin_sqrtf(static_cast<float>(mean + static_cast<double>(eps)));
    }
    for (int64_t head = first; head < first + count; ++head) {
      const float *from = x.base + head * x.step, scale = rstd[head];
      float* to = out.base + head * out.step;
      for_vectors(width, [&](auto get, auto put) {
        prefetch(get, from, count * x.step);
        put(to, angles.turn(get(from) * scale * get(weight), get));
      });
    }
  });
}

void qk_norm_rope_backward(Rows dx, float* dweight, ConstRows dout, ConstRows x, const float* rstd,
                           int64_t heads, int64_t width, const float* weight, const float* cos,
                           const float* sin) {
  Angles angles;
  angles.spread(cos, sin, width, true);
  // This token's share of dweight: a short sum of its own keeps the long one accurate.
  alignas(64) float share[kMaxHeadWidth];
  for_vectors(width, [&](auto, auto put) { put(share, zero()); });
  for_groups(heads, group_size(width), [&](int64_t first, int64_t count) {
    float means[kMaxGroup];
    for (int64_t i = 0; i < count; ++i) {
      const float *d = dout.base + (first + i) * dout.step, *from = x.base + (first + i) * x.step,
                  scale = rstd[first + i];
      const double dot = sum_one(
          width, [&](auto get) { return angles.turn(get(d), get) * get(weight) * (get(from) * scale); });
      means[i] = static_cast<float>(dot / static_cast<double>(width));
    }
    for (int64_t i = 0; i < count; ++i) {
      const float *d = dout.base + (first + i) * dout.step, *from = x.base + (first + i) * x.step,
                  scale = rstd[first + i];
      float* to = dx.base + (first + i) * dx.step;
      for_vectors(width, [&](auto get, auto put) {
        prefetch(get, d, count * dout.step);
        prefetch(get, from, count * x.step);
        const Vec slope = angles.turn(get(d), get), normal = get(from) * scale;
        put(share, get(share) + slope * normal);
        put(to, (slope * get(weight) - normal * means[i]) * scale);
      });
    }
  });
  for_vectors(width, [&](auto get, auto put) { put(dweight, get(dweight) + get(share)); });
}

}  // namespace

const RopeRows rope_rows{rope, qk_norm_rope, qk_norm_rope_backward};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
