// Elementary functions of vectors in f32. Errors in units of the last place: exp, log, tanh, sigmoid 2; the
// gelu family 4. Infinities, NaN and overflow give what IEEE arithmetic would. Polynomials were fitted for
// least greatest relative error (weighted least squares, Lawson's iteration) with the ranges stated at each.
#pragma once
#include "backend/cpu/simd.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

template <int N>
DF_INLINE Vec horner(Vec x, const float (&coefficients)[N]) {
  Vec sum = splat(coefficients[N - 1]);
  for (int i = N - 2; i >= 0; --i) sum = fma(sum, x, splat(coefficients[i]));
  return sum;
}

/// 2^n for -126 <= n <= 127 (anything for other n).
DF_INLINE Vec power_of_two(IntVec n) {
  return reinterpret_cast<Vec>((reinterpret_cast<UintVec>(n) + 127u) << 23);
}

/// v * 2^n, n integral within [-252, 252]; rounds once when the result is subnormal.
DF_INLINE Vec scale_by_power(Vec v, Vec n, IntVec n_int) {
#if defined(__AVX512F__)
  (void)n_int;
  return _mm512_scalef_ps(v, n);
#else  // two steps, for neither 2^n nor the result need be a normal number
  (void)n;
  const IntVec first = n_int >> 1, second = n_int - first;
  return v * power_of_two(first) * power_of_two(second);
#endif
}

constexpr float kRounder = 0x1.8p23f;  // adding it rounds to an integer, which stands in the low bits then

/// 2^(high + low) for |high| <= 126.
DF_INLINE Vec exp2_with_tail(Vec high, Vec low) {
  // 2^r = 1 + r p(r) for |r| <= 1/2
  static const float kFactor[] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6aed8p-5f,
                                  0x1.3b2d68p-7f, 0x1.5f4706p-10f, 0x1.41f61ep-13f};
  const Vec shifted = high + kRounder;
  const Vec n = shifted - kRounder;
  const Vec r = (high - n) + low;
  const Vec p = fma(r, horner(r, kFactor), splat(1.0f));
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else  // the rounder's own bits fall out on the left
  return p * reinterpret_cast<Vec>((unsigned_bits(shifted) + 127u) << 23);
#endif
}

/// exp(x + low), low being the part of the argument that did not fit in x.
DF_INLINE Vec exp_with_tail(Vec x, Vec low) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0x1.62e400p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static const float kTail[] = {0x1.fffffcp-2f, 0x1.55548ap-3f, 0x1.555916p-5f, 0x1.123fc6p-7f,
                                0x1.6a1a6ep-10f};
  x = at_most(at_least(x, splat(-104.0f)), splat(89.0f));
  const Vec shifted = fma(x, splat(kLog2e), splat(kRounder));
  const IntVec n_int = reinterpret_cast<IntVec>(unsigned_bits(shifted) - unsigned_bits(splat(kRounder)));
  const Vec n = shifted - kRounder;
  const Vec r = fma(n, splat(-kLn2Low), fma(n, splat(-kLn2High), x)) + low;
  // e^r = 1 + r + r^2 q(r) for |r| <= ln2 / 2
  const Vec p = fma(r * r, horner(r, kTail), r) + 1.0f;
  return scale_by_power(p, n, n_int);
}
DF_INLINE Vec exp(Vec x) { return exp_with_tail(x, zero()); }

DF_INLINE Vec log(Vec x) {
  static const float kTail[] = {0x1.555554p-2f, -0x1.000228p-2f, 0x1.99a008p-3f, -0x1.547244p-3f,
                                0x1.22da22p-3f, -0x1.0d8552p-3f, 0x1.055b46p-3f, -0x1.38b4ccp-4f};
  constexpr float kLn2High = 0x1.62e000p-1f, kLn2Low = 0x1.0bfbe8p-15f;
  const IntVec subnormal = abs(x) < 0x1p-126f;
  const Vec scaled = select(subnormal, x * 0x1p24f, x);
  // exponent and mantissa with the mantissa in [sqrt(1/2), sqrt(2))
  const UintVec shifted = unsigned_bits(scaled) - 0x3f3504f3u;
  const IntVec exponent = (reinterpret_cast<IntVec>(shifted) >> 23) - (subnormal & 24);
  const Vec f = reinterpret_cast<Vec>((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const Vec e = __builtin_convertvector(exponent, Vec);
  // log(1 + f) = f - f^2/2 + f^3 p(f)
  const Vec square = f * f;
  const Vec tail = fma(square * f, horner(f, kTail), e * kLn2Low);
  Vec y = fma(e, splat(kLn2High), fma(square, splat(-0.5f), tail) + f);
  y = select(x == 0.0f, splat(-__builtin_inff()), y);
  y = select(x == __builtin_inff(), x, y);
  return select((x < 0.0f) | (x != x), splat(__builtin_nanf("")), y);
}

/// 1 / (1 + exp(-x)), accurate in both tails.
DF_INLINE Vec sigmoid(Vec x) {
  const Vec e = exp(-abs(x));
  return select(x < 0.0f, e, splat(1.0f)) / (e + 1.0f);
}

/// A number as the sum of two.
struct WideVec {
  Vec high, low;
};
/// x * c, c being high + low.
DF_INLINE WideVec wide_scale(Vec x, float high, float low) {
  const Vec product = x * high;
  return {product, fma(x, splat(low), product_error(x, splat(high), product))};
}

/// exp(-c x), c log2(e) being high + low, for |c x| <= 87.
DF_INLINE Vec decay(Vec x, float high, float low) {
  const WideVec z = wide_scale(x, -high, -low);
  return exp2_with_tail(z.high, z.low);
}
/// x sigmoid(x); what is below -86 stays where -86 is, at -4e-36.
DF_INLINE Vec silu(Vec x) {
  const Vec upper = at_least(x, splat(-86.0f));
  return upper / (decay(at_most(upper, splat(86.0f)), 0x1.715476p+0f, 0x1.4ae0c0p-26f) + 1.0f);
}

DF_INLINE Vec tanh(Vec x) {
  static const float kTail[] = {-0x1.555532p-2f, 0x1.110726p-3f, -0x1.b83c58p-5f, 0x1.522692p-6f,
                                -0x1.75e1a8p-8f};
  const Vec magnitude = abs(x);
  const Vec square = x * x;
  const Vec small = fma(magnitude * square, horner(square, kTail), magnitude);  // |x| <= 0.625
  const Vec large =
      1.0f - 2.0f / (exp2_with_tail(at_most(magnitude, splat(10.0f)) * 0x1.715476p+1f, zero()) + 1.0f);
  const Vec y = select(magnitude < 0.625f, small, large);
  return from_bits(bits_of(y) | (bits_of(x) & static_cast<std::int32_t>(0x80000000u)));
}
/// 1 - tanh(x)^2 without cancellation.
DF_INLINE Vec sech_squared(Vec x) {
  const Vec e = exp(-2.0f * abs(x));
  const Vec d = e + 1.0f;
  return 4.0f * e / (d * d);
}

/// exp(-x^2 / 2), with the rounding of the square made good.
DF_INLINE Vec exp_minus_half_square(Vec x) {
  x = within(x, 16.0f);  // gives 0, and keeps the product finite
  const Vec square = x * x;
  return exp_with_tail(-0.5f * square, -0.5f * product_error(x, x, square));
}
/// q of: upper tail of the normal distribution at m = exp(-m^2/2) q(u) / (m + 4), u = m / (m + 4). Nearly
/// flat; fitted in 2u - 1 for m in [0, 14.5].
DF_INLINE Vec normal_tail_factor(Vec u) {
  static const float kFactor[] = {0x1.82b4bcp-1f,  -0x1.373e38p-1f, 0x1.8c6d9ep-2f,  -0x1.7e0000p-3f,
                                  0x1.eed404p-5f,  -0x1.ed2d18p-8f, -0x1.cc65b6p-9f, 0x1.9b8bc6p-10f,
                                  0x1.782108p-13f, -0x1.14c460p-13f};
  return horner(2.0f * u - 1.0f, kFactor);
}
DF_INLINE Vec bounded_magnitude(Vec x) { return at_most(abs(x), splat(16.0f)); }
/// The normal distribution function. `bell` is exp_minus_half_square(x).
DF_INLINE Vec normal_cdf(Vec x, Vec bell) {
  const Vec magnitude = bounded_magnitude(x), inverse = 1.0f / (magnitude + 4.0f);
  const Vec tail = bell * (normal_tail_factor(magnitude * inverse) * inverse);
  return select(x > 0.0f, 1.0f - tail, tail);
}
/// x times the normal distribution function: |x| / (|x| + 4) is what both the factor and the product need.
DF_INLINE Vec times_normal_cdf(Vec x) {
  const Vec magnitude = bounded_magnitude(x), u = magnitude / (magnitude + 4.0f);
  const Vec tail = exp_minus_half_square(x) * (normal_tail_factor(u) * u);
  return select(x > 0.0f, x - tail, -tail);
}

}  // namespace
}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
