// Elementwise kernels: one struct per op with the function f and its derivative times dy, df.
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd_math.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

// ---- unary: f(x) and df(x, dy); a and b are the op's parameters -----------------------------------------------------
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
  static Vec df(Vec x, Vec dy, Vec, Vec) { return dy * (sigmoid(x) * sigmoid(-x)); }
};

/// The derivative of x * sigmoid(z(x)), given s = sigmoid(z), c = sigmoid(-z) and z'.
DF_INLINE Vec gated_slope(Vec x, Vec s, Vec c, Vec dz) { return s + x * dz * (s * c); }

struct silu {
  static Vec f(Vec x, Vec, Vec) { return x * sigmoid(x); }
  static Vec df(Vec x, Vec dy, Vec, Vec) { return dy * gated_slope(x, sigmoid(x), sigmoid(-x), splat(1.0f)); }
};
struct gelu_tanh {
  // 0.5 (1 + tanh(u)) = sigmoid(2u), and 2u = k1 x + k3 x^3 in two numbers: a tail of the sigmoid multiplies errors of its
  // argument by the argument.
  static constexpr float kOneHigh = 0x1.988454p+0f, kOneLow = -0x1.857936p-25f;
  static constexpr float kThreeHigh = 0x1.2444f2p-4f, kThreeLow = 0x1.49b16ap-29f;
  DF_INLINE static Vec bounded(Vec x) { return select(x > 16.0f, splat(16.0f), select(x < -16.0f, splat(-16.0f), x)); }
  DF_INLINE static WideVec argument(Vec x) {
    const Vec square = x * x, cube = square * x;
    const Vec cube_low = fma(product_error(x, x, square), x, product_error(square, x, cube));
    const WideVec one = wide_scale(x, kOneHigh, kOneLow), three = wide_scale(cube, kThreeHigh, kThreeLow);
    const Vec sum = one.high + three.high;
    const Vec three_part = sum - one.high;
    const Vec lost = (one.high - (sum - three_part)) + (three.high - three_part);
    return {sum, fma(cube_low, splat(kThreeHigh), lost + (one.low + three.low))};
  }
  static Vec f(Vec x, Vec, Vec) {
    const WideVec z = argument(bounded(x));
    return x * sigmoid_with_tail(z.high, z.low);
  }
  static Vec df(Vec x, Vec dy, Vec, Vec) {
    const Vec near = bounded(x);
    const WideVec z = argument(near);
    const Vec slope = fma(near * near, splat(3 * kThreeHigh), splat(kOneHigh));
    return dy * gated_slope(near, sigmoid_with_tail(z.high, z.low), sigmoid_with_tail(-z.high, -z.low), slope);
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
  static constexpr float kHigh = 0x1.b3b646p+0f, kLow = -0x1.78d4fep-26f;
  DF_INLINE static WideVec argument(Vec x) {
    return wide_scale(select(x > 128.0f, splat(128.0f), select(x < -128.0f, splat(-128.0f), x)), kHigh, kLow);
  }
  static Vec f(Vec x, Vec, Vec) {
    const WideVec z = argument(x);
    return x * sigmoid_with_tail(z.high, z.low);
  }
  static Vec df(Vec x, Vec dy, Vec, Vec) {
    const WideVec z = argument(x);
    return dy * gated_slope(x, sigmoid_with_tail(z.high, z.low), sigmoid_with_tail(-z.high, -z.low), splat(kHigh));
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
using cpu::DANCEFLUX_ISA_NAMESPACE::silu;
using cpu::DANCEFLUX_ISA_NAMESPACE::square;
using exp = exp_op;
using log = log_op;
using sqrt = sqrt_op;
using tanh = tanh_op;
using sigmoid = sigmoid_op;

// ---- binary ----------------------------------------------------------------------------------------------------------
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
void gated_add_backward(float* dgate, float* dy, const float* dout, const float* gate, const float* y, int64_t n) {
  for_vectors(n, [&](auto get, auto put) {
    const Vec d = get(dout);
    put(dgate, get(dgate) + d * get(y));
    put(dy, get(gate) * d);
  });
}

}  // namespace

#define DF_UNARY(op) unary_row<ops::op>,
#define DF_UNARY_BACKWARD(op) unary_backward_row<ops::op>,
#define DF_BINARY(op) {binary_row<ops::op, kBothRows>, binary_row<ops::op, kScalarB>, binary_row<ops::op, kScalarA>},
const ElementwiseRows elementwise_rows{{DANCEFLUX_UNARY_OPS(DF_UNARY)},
                                       {DANCEFLUX_UNARY_OPS(DF_UNARY_BACKWARD)},
                                       {DANCEFLUX_BINARY_OPS(DF_BINARY)},
                                       gated_add,
                                       gated_add_backward};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
