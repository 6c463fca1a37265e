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

float max_of(const float* x, int64_t n) {
  const Vec least = splat(-__builtin_inff());
  Vec even = least, odd = least;
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even = max_nan(even, load(x + i));
    odd = max_nan(odd, load(x + i + kLanes));
  }
  if (i + kLanes <= n) {
    even = max_nan(even, load(x + i));
    i += kLanes;
  }
  if (i < n) odd = max_nan(odd, select(lane_mask(n - i), load_tail(x + i, n - i), least));
  return max_lanes(max_nan(even, odd));
}
double max_row(const float* x, int64_t n) { return max_of(x, n); }

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
  DF_INLINE static Vec join(Vec all, Vec x) { return all + x * x; }
};

template <class Fold>
void fold_columns(float* out, const float* x, int64_t x_step, int64_t rows, int64_t n) {
  int64_t j = 0;
  for (; j + 4 * kLanes <= n; j += 4 * kLanes) {
    const float* at = x + j;
    Vec a = Fold::first(load(at)), b = Fold::first(load(at + kLanes)), c = Fold::first(load(at + 2 * kLanes)),
        d = Fold::first(load(at + 3 * kLanes));
    for (int64_t i = 1; i < rows; ++i) {
      at += x_step;
      a = Fold::join(a, load(at));
      b = Fold::join(b, load(at + kLanes));
      c = Fold::join(c, load(at + 2 * kLanes));
      d = Fold::join(d, load(at + 3 * kLanes));
    }
    store(out + j, a);
    store(out + j + kLanes, b);
    store(out + j + 2 * kLanes, c);
    store(out + j + 3 * kLanes, d);
  }
  for_vectors(n - j, [&](auto get, auto put) {
    Vec all = Fold::first(get(x + j));
    for (int64_t i = 1; i < rows; ++i) all = Fold::join(all, get(x + j + i * x_step));
    put(out + j, all);
  });
}

void softmax(float* out, const float* x, int64_t n) {
  const float most = max_of(x, n);
  if (most == -__builtin_inff()) {
    for_vectors(n, [&](auto, auto put) { put(out, zero()); });
    return;
  }
  for_vectors(n, [&](auto get, auto put) { put(out, exp(get(x) - most)); });
  const float scale = static_cast<float>(1.0 / sum_row(out, n));
  for_vectors(n, [&](auto get, auto put) { put(out, get(out) * scale); });
}

void softmax_backward(float* dx, const float* y, const float* dy, int64_t n) {
  const float dot = static_cast<float>(sum_one(n, [y, dy](auto get) { return get(y) * get(dy); }));
  for_vectors(n, [&](auto get, auto put) { put(dx, get(y) * (get(dy) - dot)); });
}

}  // namespace

const ReduceRows reduce_rows{{sum_row, max_row, squares_row},
                             {fold_columns<SumFold>, fold_columns<MaxFold>, fold_columns<SquaresFold>},
                             softmax,
                             softmax_backward};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
