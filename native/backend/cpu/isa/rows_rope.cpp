// Rotary embedding of adjacent pairs, alone and fused with the RMS norm of queries and keys.
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd.h"
#include "backend/cpu/simd_sum.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

/// One token's angles, a number per element: a pair becomes x * cos + swapped x * sin.
struct Angles {
  float cos[kMaxHeadWidth];
  float sin[kMaxHeadWidth];

  void spread(const float* cos_half, const float* sin_half, int64_t width, bool inverse) {
    const float sign = inverse ? -1.0f : 1.0f;
    for (int64_t i = 0; i < width / 2; ++i) {
      cos[2 * i] = cos[2 * i + 1] = cos_half[i];
      sin[2 * i] = -sign * sin_half[i];
      sin[2 * i + 1] = sign * sin_half[i];
    }
  }
};

/// Widths past Angles go piece by piece.
void rope(float* out, int64_t out_step, const float* x, int64_t x_step, int64_t heads, int64_t width, const float* cos,
          const float* sin, bool inverse) {
  Angles angles;
  for (int64_t begin = 0; begin < width; begin += kMaxHeadWidth) {
    const int64_t count = width - begin < kMaxHeadWidth ? width - begin : kMaxHeadWidth;
    angles.spread(cos + begin / 2, sin + begin / 2, count, inverse);
    for (int64_t head = 0; head < heads; ++head) {
      const float* from = x + head * x_step + begin;
      float* to = out + head * out_step + begin;
      for_vectors(count, [&](auto get, auto put) {
        const Vec v = get(from);
        put(to, v * get(angles.cos) + swap_pairs(v) * get(angles.sin));
      });
    }
  }
}

void qk_norm_rope(float* out, int64_t out_step, float* rstd, const float* x, int64_t x_step, int64_t heads, int64_t width,
                  const float* weight, const float* cos, const float* sin, float eps) {
  Angles angles;
  angles.spread(cos, sin, width, false);
  for (int64_t head = 0; head < heads; ++head) {
    const float* from = x + head * x_step;
    float* to = out + head * out_step;
    const double squares = sum_one(width, [from](auto get) {
      const Vec v = get(from);
      return v * v;
    });
    const float scale = static_cast<float>(1.0 / __builtin_sqrt(squares / static_cast<double>(width) + static_cast<double>(eps)));
    rstd[head] = scale;
    for_vectors(width, [&](auto get, auto put) {
      const Vec y = get(from) * scale * get(weight);
      put(to, y * get(angles.cos) + swap_pairs(y) * get(angles.sin));
    });
  }
}

void qk_norm_rope_backward(float* dx, int64_t dx_step, float* dweight, const float* dout, int64_t dout_step, const float* x,
                           int64_t x_step, const float* rstd, int64_t heads, int64_t width, const float* weight,
                           const float* cos, const float* sin) {
  Angles angles;
  angles.spread(cos, sin, width, true);
  float turned[kMaxHeadWidth];    // the gradient before the rotation
  float share[kMaxHeadWidth];     // this token's share of dweight: a short sum of its own keeps the long one accurate
  for_vectors(width, [&](auto, auto put) { put(share, zero()); });
  for (int64_t head = 0; head < heads; ++head) {
    const float* from = x + head * x_step;
    const float* d = dout + head * dout_step;
    const float scale = rstd[head];
    for_vectors(width, [&](auto get, auto put) {
      const Vec v = get(d);
      const Vec y = v * get(angles.cos) + swap_pairs(v) * get(angles.sin);
      put(share, get(share) + y * (get(from) * scale));
      put(turned, y * get(weight));
    });
    const double dot = sum_one(width, [&](auto get) { return get(turned) * (get(from) * scale); });
    const float mean = static_cast<float>(dot / static_cast<double>(width));
    float* to = dx + head * dx_step;
    for_vectors(width, [&](auto get, auto put) { put(to, (get(turned) - get(from) * scale * mean) * scale); });
  }
  if (dweight) for_vectors(width, [&](auto get, auto put) { put(dweight, get(dweight) + get(share)); });
}

}  // namespace

const RopeRows rope_rows{rope, qk_norm_rope, qk_norm_rope_backward};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
