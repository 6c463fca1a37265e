// Layer, RMS and group norm. With g = dy * weight and x^ = (x - mean) * rstd, the gradient is
// dx = rstd * (g - mean(g) - x^ mean(g x^)); RMS norm has no mean, so its dx lacks the second term.
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd_math.h"
#include "backend/cpu/simd_sum.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

constexpr int64_t kMomentBlock = 4096;

/// Two passes over what is still in the first cache. The second sums deviations too, which are small numbers,
/// and so finds by how much the first sum was off.
DF_INLINE Moments block_moments(const float* x, int64_t n) {
  const double count = static_cast<double>(n);
  const float about = static_cast<float>(sum_one(n, [x](auto get) { return get(x); }) / count);
  double totals[2];
  sum_terms(
      n,
      [x, about](auto get) {
        const Vec d = get(x) - about;
        return Terms<2>{{d, d * d}};
      },
      totals);
  const double off = totals[0] / count;
  return {about + off, totals[1] - totals[0] * off};
}

/// Blocks joined from left to right (Chan, Golub and LeVeque 1979).
Moments moments(const float* x, int64_t n) {
  Moments all = block_moments(x, n < kMomentBlock ? n : kMomentBlock);
  for (int64_t done = kMomentBlock; done < n; done += kMomentBlock) {
    const int64_t count = n - done < kMomentBlock ? n - done : kMomentBlock;
    const Moments next = block_moments(x + done, count);
    const double delta = next.mean - all.mean,
                 share = static_cast<double>(count) / static_cast<double>(done + count);
    all.mean += delta * share;
    all.squares += next.squares + delta * delta * share * static_cast<double>(done);
  }
  return all;
}

DF_INLINE float reciprocal_root(double variance, float eps) {
  const double inside = variance < 0 ? 0.0 : variance;  // NaN stays
  return 1.0f / __builtin_sqrtf(static_cast<float>(inside + static_cast<double>(eps)));
}

void layer(Rows out, float* mean, float* rstd, ConstRows x, int64_t rows, int64_t n, const float* weight,
           const float* bias, float eps) {
  for_groups(rows, group_size(n), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row) {
      const Moments all = moments(x.base + row * x.step, n);
      mean[row] = static_cast<float>(all.mean);
      rstd[row] = reciprocal_root(all.squares / static_cast<double>(n), eps);
    }
    for (int64_t row = first; row < first + count; ++row) {
      const float *from = x.base + row * x.step, row_mean = mean[row], row_rstd = rstd[row];
      float* to = out.base + row * out.step;
      for_vectors(n, [&](auto get, auto put) {
        prefetch(get, from, count * x.step);
        Vec y = (get(from) - row_mean) * row_rstd;
        if (weight) y = y * get(weight);
        if (bias) y = y + get(bias);
        put(to, y);
      });
    }
  });
}

void rms(Rows out, float* rstd, ConstRows x, int64_t rows, int64_t n, const float* weight, const float* bias,
         float eps) {
  for_groups(rows, group_size(n), [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row) {
      const float* from = x.base + row * x.step;
      const double squares = sum_one(n, [from](auto get) {
        const Vec v = get(from);
        return v * v;
      });
      rstd[row] = reciprocal_root(squares / static_cast<double>(n), eps);
    }
    for (int64_t row = first; row < first + count; ++row) {
      const float *from = x.base + row * x.step, row_rstd = rstd[row];
      float* to = out.base + row * out.step;
      for_vectors(n, [&](auto get, auto put) {
        prefetch(get, from, count * x.step);
        Vec y = get(from) * row_rstd;
        if (weight) y = y * get(weight);
        if (bias) y = y + get(bias);
        put(to, y);
      });
    }
  });
}

/// One row's two means: of g (zero for rms) and of g x^.
struct SlopeMeans {
  float g, g_x;
};
DF_INLINE SlopeMeans slope_means(const float* dy, const float* x, int64_t n, float mean, float rstd,
                                 const float* weight, bool rms) {
  double totals[2];
  sum_terms(
      n,
      [=](auto get) {
        Vec g = get(dy);
        if (weight) g = g * get(weight);
        return Terms<2>{{g, g * ((get(x) - mean) * rstd)}};
      },
      totals);
  const double scale = 1.0 / static_cast<double>(n);
  return {rms ? 0.0f : static_cast<float>(totals[0] * scale), static_cast<float>(totals[1] * scale)};
}

/// The share of a group of rows in dweight and dbias: sums over the rows stay in registers.
DF_INLINE void add_parameter_slopes(float* dweight, float* dbias, ConstRows dy, ConstRows x, int64_t first,
                                    int64_t count, int64_t n, const float* mean, const float* rstd) {
  for_vectors(n, [&](auto get, auto put) {
    Vec weight_sum = zero(), bias_sum = zero();
    for (int64_t row = first; row < first + count; ++row) {
      const Vec d = get(dy.base + row * dy.step);
      const float row_mean = mean ? mean[row] : 0.0f;
      weight_sum += d * ((get(x.base + row * x.step) - row_mean) * rstd[row]);
      bias_sum += d;
    }
    if (dweight) put(dweight, get(dweight) + weight_sum);
    if (dbias) put(dbias, get(dbias) + bias_sum);
  });
}

void backward(Rows dx, float* dweight, float* dbias, ConstRows dy, ConstRows x, int64_t rows, int64_t n,
              const float* mean, const float* rstd, const float* weight) {
  const bool is_rms = mean == nullptr;
  for_groups(rows, 4, [&](int64_t first, int64_t count) {
    if (dweight || dbias)
      add_parameter_slopes(dweight, dbias, dy, x, first, count, n, mean, rstd);  // before dx, which may be dy
    for (int64_t row = first; row < first + count; ++row) {
      const float *d = dy.base + row * dy.step, *from = x.base + row * x.step;
      float* to = dx.base + row * dx.step;
      const float row_mean = is_rms ? 0.0f : mean[row], row_rstd = rstd[row];
      const SlopeMeans means = slope_means(d, from, n, row_mean, row_rstd, weight, is_rms);
      for_vectors(n, [&](auto get, auto put) {
        prefetch(get, from, 4 * x.step);
        prefetch(get, d, 4 * dy.step);
        Vec g = get(d);
        if (weight) g = g * get(weight);
        put(to, ((g - means.g) - (get(from) - row_mean) * row_rstd * means.g_x) * row_rstd);
      });
    }
  });
}

void channel(float* out, const float* x, int64_t n, float mean, float rstd, float weight, float bias,
             bool with_silu) {
  if (with_silu) {
    for_vectors(n, [&](auto get, auto put) { put(out, silu((get(x) - mean) * rstd * weight + bias)); });
  } else {
    for_vectors(n, [&](auto get, auto put) { put(out, (get(x) - mean) * rstd * weight + bias); });
  }
}

void channel_sums(double* dy_sum, double* dy_x_sum, const float* dy, const float* x, int64_t n, float mean,
                  float rstd) {
  double totals[2];
  sum_terms(
      n,
      [=](auto get) {
        const Vec d = get(dy);
        return Terms<2>{{d, d * ((get(x) - mean) * rstd)}};
      },
      totals);
  *dy_sum = totals[0];
  *dy_x_sum = totals[1];
}

void channel_backward(float* dx, const float* dy, const float* x, int64_t n, float mean, float rstd,
                      float weight, float dy_mean, float dy_x_mean) {
  for_vectors(n, [&](auto get, auto put) {
    const Vec normal = (get(x) - mean) * rstd;
    put(dx, ((get(dy) * weight - dy_mean) - normal * dy_x_mean) * rstd);
  });
}

}  // namespace

const NormRows norm_rows{moments, layer, rms, backward, channel, channel_sums, channel_backward};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
