// Elementwise kernels: one struct per op with the function f and its derivative times dy, df.
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd_math.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

// ---- unary: f(x) and df(x, dy); a and b are the op's parameters ------------------------------------------
struct affine {
  static Vec f(Vec x, Vec a, Vec b) { return a * x + b; }
  static Vec df(Vec, Vec dy, Vec a, Vec) { return a * dy; }
};
struct clamp {
  static Vec f(Vec x, Vec a, Vec b) {
    const Vec low = select(x < a, a, x);
    return select(low > b, b, low);
  }
  static Vec df(Vec x, Vec dy, Vec a, Vec b) { return select((x < a) | (x > b), zero(), dy); }
};
struct exp_op {
  static Vec f(Vec x, Vec, Vec) { return exp(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) { return dy * exp(x); }
};
struct log_op {
  static Vec f(Vec x, Vec, Vec) { return log(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) { return dy / x; }
};
struct sqrt_op {
  static Vec f(Vec x, Vec, Vec) { return sqrt(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) { return 0.5f * dy / sqrt(x); }
};
struct rsqrt {
  static Vec f(Vec x, Vec, Vec) { return 1.0f / sqrt(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) { return -0.5f * dy / (x * sqrt(x)); }
};
struct square {
  static Vec f(Vec x, Vec, Vec) { return x * x; }
  static Vec df(Vec x, Vec dy, Vec, Vec) { return 2.0f * x * dy; }
};
struct reciprocal {
  static Vec f(Vec x, Vec, Vec) { return 1.0f / x; }
  static Vec df(Vec x, Vec dy, Vec, Vec) { return -dy / (x * x); }
};
struct tanh_op {
  static Vec f(Vec x, Vec, Vec) { return tanh(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) { return dy * sech_squared(x); }
};
struct sigmoid_op {
  static Vec f(Vec x, Vec, Vec) { return sigmoid(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) {
    const Vec e = exp(-abs(x)), s = 1.0f / (e + 1.0f);
    return dy * (s * s * e);
  }
};

// The gated ones are x / (1 + e), e = exp(-z(x)); their derivative is s (1 + x z' c), s = 1 / (1 + e), c = e
// s. Where z is a product it is kept in two numbers, and in units of log 2: the tail of e multiplies an error
// of z by z. The argument of e is bounded, so that e is a normal number; what is left below the bound is
// -1e-36.
DF_INLINE Vec gated_slope(Vec x, Vec e, Vec dz) {
  const Vec s = 1.0f / (e + 1.0f);
  return s * fma(x * dz, e * s, splat(1.0f));
}

struct silu_op {
  static Vec f(Vec x, Vec, Vec) { return silu(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) {
    const Vec near = within(x, 86.0f);
    return dy * gated_slope(near, decay(near, 0x1.715476p+0f, 0x1.4ae0c0p-26f), splat(1.0f));
  }
};
struct gelu_tanh {
  // 0.5 (1 + tanh(u)) = sigmoid(2u), and 2u / log 2 = x (k1 + k3 x^2)
  static constexpr float kBound = 9.9f;
  static constexpr float kOne = 0x1.26aec2p+1f, kOneLow = 0x1.bce75ap-27f;
  static constexpr float kThree = 0x1.a5a7d0p-4f, kThreeLow = -0x1.151aaep-29f;
  static constexpr float kSlopeOne = 0x1.988454p+0f, kSlopeThree = 0x1.b6676cp-3f;  // of 2u
  /// exp(-2u) for |x| <= kBound
  DF_INLINE static Vec exponential(Vec x) {
    const Vec square = x * x, cubic = square * kThree;
    const Vec larger = at_least(cubic, splat(kOne)), smaller = at_most(cubic, splat(kOne));
    const Vec slope = larger + smaller;
    const Vec lost = (smaller - (slope - larger)) + product_error(square, splat(kThree), cubic);
    const Vec slope_low =
        fma(product_error(x, x, square), splat(kThree), lost) + fma(square, splat(kThreeLow), splat(kOneLow));
    const Vec z = x * slope;
    return exp2_with_tail(-z, -fma(x, slope_low, product_error(x, slope, z)));
  }
  static Vec f(Vec x, Vec, Vec) {
    const Vec upper = at_least(x, splat(-kBound));
    return upper / (exponential(at_most(upper, splat(kBound))) + 1.0f);
  }
  static Vec df(Vec x, Vec dy, Vec, Vec) {
    const Vec near = within(x, kBound);
    return dy * gated_slope(near, exponential(near), fma(near * near, splat(kSlopeThree), splat(kSlopeOne)));
  }
};
struct gelu_erf {
  static Vec f(Vec x, Vec, Vec) { return times_normal_cdf(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) {
    const Vec bell = exp_minus_half_square(x);
    return dy * (normal_cdf(x, bell) + x * (bell * 0x1.988454p-2f));
  }
};
struct quick_gelu {
  static constexpr float kBound = 51, kHigh = 0x1.3a4cbep+1f, kLow = -0x1.c08ecap-26f;  // 1.702 log2(e)
  static Vec f(Vec x, Vec, Vec) {
    const Vec upper = at_least(x, splat(-kBound));
    return upper / (decay(at_most(upper, splat(kBound)), kHigh, kLow) + 1.0f);
  }
  static Vec df(Vec x, Vec dy, Vec, Vec) {
    const Vec near = within(x, kBound);
    return dy * gated_slope(near, decay(near, kHigh, kLow), splat(0x1.b3b646p+0f));
  }
};
// The ops whose names are taken by the functions of simd_math.h.
namespace ops {
using cpu::DANCEFLUX_ISA_NAMESPACE::affine;
using cpu::DANCEFLUX_ISA_NAMESPACE::clamp;
using cpu::DANCEFLUX_ISA_NAMESPACE::gelu_erf;
using cpu::DANCEFLUX_ISA_NAMESPACE::gelu_tanh;
using cpu::DANCEFLUX_ISA_NAMESPACE::quick_gelu;
using cpu::DANCEFLUX_ISA_NAMESPACE::reciprocal;
using cpu::DANCEFLUX_ISA_NAMESPACE::rsqrt;
using cpu::DANCEFLUX_ISA_NAMESPACE::square;
using exp = exp_op;
using log = log_op;
using sqrt = sqrt_op;
using tanh = tanh_op;
using sigmoid = sigmoid_op;
using silu = silu_op;

// ---- binary ----------------------------------------------------------------------------------------------
struct add {
  DF_INLINE static Vec f(Vec a, Vec b, Vec b_scale) { return a + b_scale * b; }
};
struct sub {
  DF_INLINE static Vec f(Vec a, Vec b, Vec) { return a - b; }
};
struct mul {
  DF_INLINE static Vec f(Vec a, Vec b, Vec) { return a * b; }
};
struct div {
  DF_INLINE static Vec f(Vec a, Vec b, Vec) { return a / b; }
};
struct max {
  DF_INLINE static Vec f(Vec a, Vec b, Vec) { return max_nan(a, b); }
};
struct min {
  DF_INLINE static Vec f(Vec a, Vec b, Vec) { return min_nan(a, b); }
};
}  // namespace ops

template <class Op>
void unary_row(float* out, const float* x, int64_t n, float a, float b) {
  const Vec va = splat(a), vb = splat(b);
  for_vectors(n, [&](auto get, auto put) { put(out, Op::f(get(x), va, vb)); });
}
template <class Op>
void unary_backward_row(float* dx, const float* x, const float* dy, int64_t n, float a, float b) {
  const Vec va = splat(a), vb = splat(b);
  for_vectors(n, [&](auto get, auto put) { put(dx, Op::df(get(x), get(dy), va, vb)); });
}
template <class Op, RowOperands kOperands>
void binary_row(float* out, const float* a, const float* b, int64_t n, float b_scale) {
  const Vec scale = splat(b_scale), one_a = splat(*a), one_b = splat(*b);
  for_vectors(n, [&](auto get, auto put) {
    put(out, Op::f(kOperands == kScalarA ? one_a : get(a), kOperands == kScalarB ? one_b : get(b), scale));
  });
}

void gated_add(float* out, const float* x, const float* gate, const float* y, int64_t n) {
  for_vectors(n, [&](auto get, auto put) { put(out, get(x) + get(gate) * get(y)); });
}
void gated_add_backward(float* dgate, Rows dy, ConstRows dout, const float* gate, ConstRows y, int64_t rows,
                        int64_t n) {
  for (int64_t row = 0; row < rows; ++row) {
    const float *dout_row = dout.base + row * dout.step, *y_row = y.base + row * y.step;
    float* dy_row = dy.base + row * dy.step;
    for_vectors(n, [&](auto get, auto put) {
      const Vec d = get(dout_row);
      put(dgate, get(dgate) + d * get(y_row));
      put(dy_row, get(gate) * d);
    });
  }
}
void fill(float* out, float value, int64_t n) {
  const Vec v = splat(value);
  for_vectors(n, [&](auto, auto put) { put(out, v); });
}

void flow_step(float* next, const float* x, const float* v, const float* noise, const FlowRow& row,
               int64_t n) {
  const Vec cx = splat(row.cx), cv = splat(row.cv), std = splat(row.std);
  for_vectors(n, [&](auto get, auto put) {
    const Vec mean = get(x) * cx + get(v) * cv;
    put(next, noise ? mean + get(noise) * std : mean);
  });
}
void flow_distance(float* out, const float* x, const float* v, const float* next, const FlowRow& row,
                   int64_t n) {
  const Vec cx = splat(row.cx), cv = splat(row.cv);
  for_vectors(n, [&](auto get, auto put) {
    const Vec d = get(next) - (get(x) * cx + get(v) * cv);
    put(out, d * d);
  });
}
void flow_backward(float* dx, float* dv, const float* x, const float* v, const float* next,
                   const FlowRow& row, float slope, int64_t n) {
  const Vec cx = splat(row.cx), cv = splat(row.cv), s = splat(slope);
  for_vectors(n, [&](auto get, auto put) {
    const Vec d = 2.0f * (get(next) - (get(x) * cx + get(v) * cv)) * s;
    if (dx) put(dx, -d * cx);
    if (dv) put(dv, -d * cv);
  });
}

}  // namespace

#define DF_UNARY(op) unary_row<ops::op>,
#define DF_UNARY_BACKWARD(op) unary_backward_row<ops::op>,
#define DF_BINARY(op) \
  {binary_row<ops::op, kBothRows>, binary_row<ops::op, kScalarB>, binary_row<ops::op, kScalarA>},
const ElementwiseRows elementwise_rows{{DANCEFLUX_UNARY_OPS(DF_UNARY)},
                                       {DANCEFLUX_UNARY_OPS(DF_UNARY_BACKWARD)},
                                       {DANCEFLUX_BINARY_OPS(DF_BINARY)},
                                       gated_add,
                                       gated_add_backward,
                                       fill,
                                       flow_step,
                                       flow_distance,
                                       flow_backward};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
