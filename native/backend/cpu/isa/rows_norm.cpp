// Layer, RMS and group norm. With g = dy * weight and x^ = (x - mean) * rstd, the gradient is
// dx = rstd * (g - mean(g) - x^ mean(g x^)); RMS norm has no mean, so its dx lacks the second term.
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd_math.h"
#include "backend/cpu/simd_sum.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

constexpr int64_t kMomentBlock = 4096;

/// Two passes over what is still in the first cache.
Moments block_moments(const float* x, int64_t n) {
  const double mean = sum_one(n, [x](auto get) { return get(x); }) / static_cast<double>(n);
  const float about = static_cast<float>(mean);
  const double squares = sum_one(n, [x, about](auto get) {
    const Vec d = get(x) - about;
    return d * d;
  });
  const double off = mean - about;
  return {mean, squares - static_cast<double>(n) * off * off};
}

/// Blocks joined from left to right (Chan, Golub and LeVeque 1979).
Moments moments(const float* x, int64_t n) {
  Moments all = block_moments(x, n < kMomentBlock ? n : kMomentBlock);
  for (int64_t done = kMomentBlock; done < n; done += kMomentBlock) {
    const int64_t count = n - done < kMomentBlock ? n - done : kMomentBlock;
    const Moments next = block_moments(x + done, count);
    const double delta = next.mean - all.mean, share = static_cast<double>(count) / static_cast<double>(done + count);
    all.mean += delta * share;
    all.squares += next.squares + delta * delta * share * static_cast<double>(done);
  }
  return all;
}

DF_INLINE float reciprocal_root(double variance, float eps) {
  return static_cast<float>(1.0 / __builtin_sqrt((variance > 0 || variance != variance ? variance : 0.0) + static_cast<double>(eps)));
}

void normalize(float* out, const float* x, int64_t n, float mean, float rstd, const float* weight, const float* bias) {
  for_vectors(n, [&](auto get, auto put) {
    Vec y = (get(x) - mean) * rstd;
    if (weight) y = y * get(weight);
    if (bias) y = y + get(bias);
    put(out, y);
  });
}

void layer(float* out, float* mean, float* rstd, const float* x, int64_t n, const float* weight, const float* bias, float eps) {
  const Moments all = moments(x, n);
  *mean = static_cast<float>(all.mean);
  *rstd = reciprocal_root(all.squares / static_cast<double>(n), eps);
  normalize(out, x, n, *mean, *rstd, weight, bias);
}

void rms(float* out, float* rstd, const float* x, int64_t n, const float* weight, const float* bias, float eps) {
  const double squares = sum_one(n, [x](auto get) {
    const Vec v = get(x);
    return v * v;
  });
  *rstd = reciprocal_root(squares / static_cast<double>(n), eps);
  for_vectors(n, [&](auto get, auto put) {
    Vec y = get(x) * *rstd;
    if (weight) y = y * get(weight);
    if (bias) y = y + get(bias);
    put(out, y);
  });
}

void backward(float* dx, float* dweight, float* dbias, const float* dy, const float* x, int64_t n, float mean, float rstd,
              const float* weight, bool is_rms) {
  if (is_rms) mean = 0;
  double totals[2];
  sum_terms(n, [=](auto get) {
    Vec g = get(dy);
    if (weight) g = g * get(weight);
    return Terms<2>{{g, g * ((get(x) - mean) * rstd)}};
  }, totals);
  const float g_mean = is_rms ? 0.0f : static_cast<float>(totals[0] / static_cast<double>(n));
  const float g_x_mean = static_cast<float>(totals[1] / static_cast<double>(n));
  for_vectors(n, [&](auto get, auto put) {
    const Vec d = get(dy), normal = (get(x) - mean) * rstd;
    const Vec g = weight ? d * get(weight) : d;
    if (dweight) put(dweight, get(dweight) + d * normal);
    if (dbias) put(dbias, get(dbias) + d);
    put(dx, ((g - g_mean) - normal * g_x_mean) * rstd);
  });
}

void channel(float* out, const float* x, int64_t n, float mean, float rstd, float weight, float bias, bool silu) {
  if (silu) {
    for_vectors(n, [&](auto get, auto put) {
      const Vec y = (get(x) - mean) * rstd * weight + bias;
      put(out, y * sigmoid(y));
    });
  } else {
    for_vectors(n, [&](auto get, auto put) { put(out, (get(x) - mean) * rstd * weight + bias); });
  }
}

void channel_sums(double* dy_sum, double* dy_x_sum, const float* dy, const float* x, int64_t n, float mean, float rstd) {
  double totals[2];
  sum_terms(n, [=](auto get) {
    const Vec d = get(dy);
    return Terms<2>{{d, d * ((get(x) - mean) * rstd)}};
  }, totals);
  *dy_sum = totals[0];
  *dy_x_sum = totals[1];
}

void channel_backward(float* dx, const float* dy, const float* x, int64_t n, float mean, float rstd, float weight,
                      float dy_mean, float dy_x_mean) {
  for_vectors(n, [&](auto get, auto put) {
    const Vec normal = (get(x) - mean) * rstd;
    put(dx, ((get(dy) * weight - dy_mean) - normal * dy_x_mean) * rstd);
  });
}

}  // namespace

const NormRows norm_rows{moments, normalize, layer, rms, backward, channel, channel_sums, channel_backward};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
