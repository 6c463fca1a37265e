// The arithmetic of every kernel that is not a matrix product, one element or one pair at a time. Compiled by
// nvcc for the device and by the host's compiler for tests, so that what a GPU computes is tested where there
// is none.
//
// Storage types hold bits only; all arithmetic is f32. nvcc is told not to contract a*b+c (CMakeLists.txt),
// so host and device differ by nothing but their exp, tanh and erf.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DF_BOTH __host__ __device__ __forceinline__
#else
#define DF_BOTH inline
#endif

namespace danceflux::cuda {

// ---- how elements are stored -----------------------------------------------------------------------------
struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

DF_BOTH float float_of_bits(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}
DF_BOTH std::uint32_t bits_of_float(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

/// To f32. Exact, but for f64.
DF_BOTH float widen(float value) { return value; }
DF_BOTH float widen(double value) { return static_cast<float>(value); }
DF_BOTH float widen(Bf16 value) { return float_of_bits(std::uint32_t{value.bits} << 16); }
DF_BOTH float widen(F16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const std::uint32_t sign = (value.bits & 0x8000u) << 16, exponent = value.bits >> 10 & 31u,
                      fraction = value.bits & 0x3ffu;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
#endif
}

/// From f32, to nearest even; NaN stays NaN, too large becomes infinite.
template <class T>
struct Rounded;
template <>
struct Rounded<float> {
  static DF_BOTH float of(float value) { return value; }
};
template <>
struct Rounded<double> {
  static DF_BOTH double of(float value) { return static_cast<double>(value); }
};
template <>
struct Rounded<Bf16> {
  static DF_BOTH Bf16 of(float value) {
#if defined(__CUDA_ARCH__)
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    const std::uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#endif
  }
};
template <>
struct Rounded<F16> {
  static DF_BOTH F16 of(float value) {
#if defined(__CUDA_ARCH__)
    return {__half_as_ushort(__float2half_rn(value))};
#else
    const std::uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000u,
                        magnitude = bits & 0x7fffffffu;
    const auto signed_bits = [sign](std::uint32_t rest) {
      return F16{static_cast<std::uint16_t>(sign | rest)};
    };
    if (magnitude > 0x7f800000u) return signed_bits(0x7e00u);
    if (magnitude >= 0x47800000u) return signed_bits(0x7c00u);  // 2^16 and above
    if (magnitude < 0x38800000u)  // subnormal: adding 1/2 leaves it in the low bits
      return signed_bits(bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f));
    return signed_bits((magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13);
#endif
  }
};
template <class T>
DF_BOTH T narrow_to(float value) {
  return Rounded<T>::of(value);
}

// ---- one argument, in the order of UnaryOp
// ------------------------------------------------------------------
// clang-format off
#define DANCEFLUX_CUDA_UNARY_OPS(X) \
  X(affine) X(clamp) X(exp) X(log) X(sqrt) X(rsqrt) X(square) X(reciprocal) X(tanh) X(sigmoid) X(silu) \
  X(gelu_tanh) X(gelu_erf) X(quick_gelu)
#define DANCEFLUX_CUDA_BINARY_OPS(X) X(add) X(sub) X(mul) X(div) X(max) X(min)
// clang-format on

DF_BOTH float sigmoid_of(float x) { return 1.0f / (1.0f + expf(-x)); }
/// The inner argument of gelu_tanh, and its slope.
DF_BOTH float gelu_inner(float x) { return 0.7978845608028654f * (x + 0.044715f * x * x * x); }
DF_BOTH float gelu_inner_slope(float x) { return 0.7978845608028654f * (1.0f + 0.134145f * x * x); }
DF_BOTH float normal_cdf(float x) { return 0.5f * erfcf(x * -0.7071067811865476f); }

struct affine_op {
  static DF_BOTH float value(float x, float a, float b) { return a * x + b; }
  static DF_BOTH float slope(float, float a, float) { return a; }
};
struct clamp_op {
  static DF_BOTH float value(float x, float a, float b) { return fminf(fmaxf(x, a), b); }
  static DF_BOTH float slope(float x, float a, float b) { return x >= a && x <= b ? 1.0f : 0.0f; }
};
struct exp_op {
  static DF_BOTH float value(float x, float, float) { return expf(x); }
  static DF_BOTH float slope(float x, float, float) { return expf(x); }
};
struct log_op {
  static DF_BOTH float value(float x, float, float) { return logf(x); }
  static DF_BOTH float slope(float x, float, float) { return 1.0f / x; }
};
struct sqrt_op {
  static DF_BOTH float value(float x, float, float) { return sqrtf(x); }
  static DF_BOTH float slope(float x, float, float) { return 0.5f / sqrtf(x); }
};
struct rsqrt_op {
  static DF_BOTH float value(float x, float, float) { return 1.0f / sqrtf(x); }
  static DF_BOTH float slope(float x, float, float) { return -0.5f / (x * sqrtf(x)); }
};
struct square_op {
  static DF_BOTH float value(float x, float, float) { return x * x; }
  static DF_BOTH float slope(float x, float, float) { return 2.0f * x; }
};
struct reciprocal_op {
  static DF_BOTH float value(float x, float, float) { return 1.0f / x; }
  static DF_BOTH float slope(float x, float, float) { return -1.0f / (x * x); }
};
struct tanh_op {
  static DF_BOTH float value(float x, float, float) { return tanhf(x); }
  // (1 - t)(1 + t) loses digits where t is near one; 4 / (e^x + e^-x)^2 does not.
  static DF_BOTH float slope(float x, float, float) {
    const float e = expf(-2.0f * fabsf(x)), d = 1.0f + e;
    return 4.0f * e / (d * d);
  }
};
struct sigmoid_op {
  static DF_BOTH float value(float x, float, float) { return sigmoid_of(x); }
  static DF_BOTH float slope(float x, float, float) { return sigmoid_of(x) * sigmoid_of(-x); }
};
struct silu_op {
  static DF_BOTH float value(float x, float, float) { return x * sigmoid_of(x); }
  static DF_BOTH float slope(float x, float, float) { return sigmoid_of(x) * (1.0f + x * sigmoid_of(-x)); }
};
struct gelu_tanh_op {
  // (1 + tanh u) / 2 = sigmoid(2 u), which keeps its digits where tanh u is near -1.
  static DF_BOTH float value(float x, float, float) { return x * sigmoid_of(2.0f * gelu_inner(x)); }
  static DF_BOTH float slope(float x, float, float) {
    const float u = 2.0f * gelu_inner(x), s = sigmoid_of(u);
    return s + x * s * sigmoid_of(-u) * 2.0f * gelu_inner_slope(x);
  }
};
struct gelu_erf_op {
  static DF_BOTH float value(float x, float, float) { return x * normal_cdf(x); }
  static DF_BOTH float slope(float x, float, float) {
    return normal_cdf(x) + x * 0.3989422804014327f * expf(-0.5f * x * x);
  }
};
struct quick_gelu_op {
  static DF_BOTH float value(float x, float, float) { return x * sigmoid_of(1.702f * x); }
  static DF_BOTH float slope(float x, float, float) {
    return sigmoid_of(1.702f * x) * (1.0f + 1.702f * x * sigmoid_of(-1.702f * x));
  }
};

// ---- two arguments, in the order of BinaryOp
// ------------------------------------------------------------------
struct add_op {
  static DF_BOTH float value(float a, float b, float b_scale) { return a + b_scale * b; }
};
struct sub_op {
  static DF_BOTH float value(float a, float b, float) { return a - b; }
};
struct mul_op {
  static DF_BOTH float value(float a, float b, float) { return a * b; }
};
struct div_op {
  static DF_BOTH float value(float a, float b, float) { return a / b; }
};
struct max_op {
  static DF_BOTH float value(float a, float b, float) { return fmaxf(a, b); }
};
struct min_op {
  static DF_BOTH float value(float a, float b, float) { return fminf(a, b); }
};

// ---- rows and updates
// -------------------------------------------------------------------------------------------
/// AdamW's numbers of one step, made from doubles on the host.
struct AdamWStep {
  float gradient_scale, decay, beta2, one_minus_beta1, one_minus_beta2, root_correction2, eps, step_size;
};
/// PyTorch's order: decay, moments, step. Returns the new weight.
DF_BOTH float adamw_update(float weight, float& m, float& v, float gradient, const AdamWStep& step) {
  const float g = gradient * step.gradient_scale;
  weight *= step.decay;
  m += step.one_minus_beta1 * (g - m);
  v = step.beta2 * v + step.one_minus_beta2 * g * g;
  return weight - step.step_size * m / (sqrtf(v) / step.root_correction2 + step.eps);
}

/// A row's step along a flow: where it leads on average, how far it may stray, and its density.
struct FlowRow {
  float cx, cv, std, weight, constant;
};
DF_BOTH float flow_mean(float x, float v, const FlowRow& row) { return x * row.cx + v * row.cv; }
DF_BOTH float flow_next(float mean, float noise, const FlowRow& row) { return mean + noise * row.std; }
/// From the mean over the row of (next - mean)^2.
DF_BOTH float flow_log_prob(float distance, const FlowRow& row) {
  return -(distance * row.weight) - row.constant;
}
/// d log_prob / d mean for one of `count` elements, times dlog_prob.
DF_BOTH float flow_slope(float next, float mean, float dlog_prob, float count, const FlowRow& row) {
  return 2.0f * (next - mean) * (dlog_prob * row.weight / count);
}

/// A turn of the pair (x0, x1) by the angle of c = cos and s = sin.
struct Pair {
  float first, second;
};
DF_BOTH Pair rotate(float x0, float x1, float c, float s) { return {x0 * c - x1 * s, x1 * c + x0 * s}; }

/// dx of a norm: rstd * (weight * dy - dy_mean - normed * dy_normed_mean), the means over one row (or group)
/// of weight * dy and of weight * dy * normed; dy_mean is 0 without a mean.
DF_BOTH float norm_slope(float weighted_dy, float normed, float rstd, float dy_mean, float dy_normed_mean) {
  return rstd * (weighted_dy - dy_mean - normed * dy_normed_mean);
}

}  // namespace danceflux::cuda
