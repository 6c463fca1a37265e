// Reductions of rows and columns; softmax.
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd_math.h"
#include "backend/cpu/simd_sum.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

double sum_row(const float* x, int64_t n) {
  return sum_one(n, [x](auto get) { return get(x); });
}
double squares_row(const float* x, int64_t n) {
  return sum_one(n, [x](auto get) {
    const Vec v = get(x);
    return v * v;
  });
}

template <class Larger>
DF_INLINE float max_of(const float* x, int64_t n, const Larger& larger) {
  const Vec least = splat(-__builtin_inff());
  Vec even = least, odd = least;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even = larger(even, load(x + i));
    odd = larger(odd, load(x + i + kLanes));
  }
  if (i + kLanes <= n) {
    even = larger(even, load(x + i));
    i += kLanes;
  }
  if (i < n) odd = larger(odd, select(lane_mask(n - i), load_tail(x + i, n - i), least));
  return max_lanes(larger(even, odd));
}
double max_row(const float* x, int64_t n) {
  return static_cast<double>(max_of(x, n, [](Vec a, Vec b) { return max_nan(a, b); }));
}

struct SumFold {
  DF_INLINE static Vec first(Vec x) { return x; }
  DF_INLINE static Vec join(Vec all, Vec x) { return all + x; }
};
struct MaxFold {
  DF_INLINE static Vec first(Vec x) { return x; }
  DF_INLINE static Vec join(Vec all, Vec x) { return max_nan(all, x); }
};
struct SquaresFold {
  DF_INLINE static Vec first(Vec x) { return x * x; }
  DF_INLINE static Vec join(Vec all, Vec squares) { return all + squares; }
};

/// Row by row, so that memory is read in long stretches; four rows at a time, so that the sums are touched
/// less often.
template <class Fold>
void fold_columns(float* out, const float* x, int64_t x_step, int64_t rows, int64_t n) {
  const auto four = [x_step](auto get, const float* at) {
    return Fold::join(Fold::join(Fold::first(get(at)), Fold::first(get(at + x_step))),
                      Fold::join(Fold::first(get(at + 2 * x_step)), Fold::first(get(at + 3 * x_step))));
  };
  int64_t row = rows < 4 ? 1 : 4;
  for_vectors(n, [&](auto get, auto put) { put(out, rows < 4 ? Fold::first(get(x)) : four(get, x)); });
  for (; row + 4 <= rows; row += 4) {
    const float* at = x + row * x_step;
    for_vectors(n, [&](auto get, auto put) { put(out, Fold::join(get(out), four(get, at))); });
  }
  for (; row < rows; ++row) {
    const float* at = x + row * x_step;
    for_vectors(n, [&](auto get, auto put) { put(out, Fold::join(get(out), Fold::first(get(at)))); });
  }
}

void softmax(Rows out, ConstRows x, int64_t rows, int64_t n) {
  for_groups(rows, group_size(n), [&](int64_t first, int64_t count) {
    float most[kMaxGroup], scale[kMaxGroup];
    for (int64_t i = 0; i < count; ++i) {
      // NaN need not be seen here: its exponential makes the sum NaN
      most[i] = max_of(x.base + (first + i) * x.step, n, [](Vec all, Vec v) { return at_least(all, v); });
      if (most[i] == -__builtin_inff()) most[i] = 0;  // every exponential is zero then
    }
    for (int64_t i = 0; i < count; ++i) {
      const float* from = x.base + (first + i) * x.step;
      float* to = out.base + (first + i) * out.step;
      for_vectors(n, [&](auto get, auto put) { put(to, exp(get(from) - most[i])); });
    }
    for (int64_t i = 0; i < count; ++i) {
      const double sum = sum_row(out.base + (first + i) * out.step, n);
      scale[i] = sum == 0 ? 0.0f : static_cast<float>(1.0 / sum);
    }
    for (int64_t i = 0; i < count; ++i) {
      float* to = out.base + (first + i) * out.step;
      for_vectors(n, [&](auto get, auto put) { put(to, get(to) * scale[i]); });
    }
  });
}

void softmax_backward(Rows dx, ConstRows y, ConstRows dy, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row) {
    const float *p = y.base + row * y.step, *d = dy.base + row * dy.step;
    float* to = dx.base + row * dx.step;
    const float dot = static_cast<float>(sum_one(n, [p, d](auto get) { return get(p) * get(d); }));
    for_vectors(n, [&](auto get, auto put) { put(to, get(p) * (get(d) - dot)); });
  }
}

}  // namespace

const ReduceRows reduce_rows{{sum_row, max_row, squares_row},
                             {fold_columns<SumFold>, fold_columns<MaxFold>, fold_columns<SquaresFold>},
                             softmax,
                             softmax_backward};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
