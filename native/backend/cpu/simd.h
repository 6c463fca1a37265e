// One vector type per instruction set, so that a kernel is written once. For files of isa/ only: everything
// here has internal linkage, and nothing of std is instantiated.
//
// Tails: the last elements of a row are loaded into a full vector and go through the same instructions as all
// others. So a value's result does not depend on where in the row it stands.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#if defined(__GNUC__) && \
    !defined(__clang__)  // GCC 12 warns of its own "undefined" vectors once they are inlined
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef DANCEFLUX_ISA_NAMESPACE
#error "simd.h is for files that are compiled once per instruction set (cmake/isa.cmake)"
#endif

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

using std::int64_t;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t UintVec __attribute__((vector_size(kLanes * 4)));
typedef std::uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

#define DF_INLINE [[maybe_unused, gnu::always_inline]] inline

// ---- moving ----------------------------------------------------------------------------------------------
template <class V, class T>
DF_INLINE V load_as(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
DF_INLINE Vec load(const float* from) { return load_as<Vec>(from); }
DF_INLINE void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }

DF_INLINE Vec splat(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#elif defined(__x86_64__)
  return _mm_set1_ps(x);
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = x;
  return v;
#endif
}
DF_INLINE IntVec splat_int(std::int32_t x) { return IntVec{} + x; }
DF_INLINE Vec zero() { return Vec{}; }

DF_INLINE Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
DF_INLINE IntVec bits_of(Vec v) { return reinterpret_cast<IntVec>(v); }
DF_INLINE UintVec unsigned_bits(Vec v) { return reinterpret_cast<UintVec>(v); }
DF_INLINE Vec from_bits(IntVec v) { return reinterpret_cast<Vec>(v); }

/// Lanes 0 .. count-1 are all ones.
DF_INLINE IntVec lane_mask(int64_t count) {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<std::int32_t>(count);
}

/// The first `count` < kLanes elements, zeros behind them; reads no further.
DF_INLINE Vec load_tail(const float* from, int64_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(from, reinterpret_cast<__m256i>(lane_mask(count)));
#else
  Vec v{};
  for (int i = 0; i < kLanes - 1; ++i) {
    if (i < count) v[i] = from[i];
  }
  return v;
#endif
}
DF_INLINE void store_tail(float* to, Vec v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(to, reinterpret_cast<__m256i>(lane_mask(count)), v);
#else
  for (int i = 0; i < kLanes - 1; ++i) {
    if (i < count) to[i] = v[i];
  }
#endif
}
DF_INLINE HalfVec load_half_tail(const std::uint16_t* from, int64_t count) {
  std::uint16_t padded[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return load_as<HalfVec>(padded);
}
DF_INLINE void store_half(std::uint16_t* to, HalfVec v) { __builtin_memcpy(to, &v, sizeof v); }
DF_INLINE void store_half_tail(std::uint16_t* to, HalfVec v, int64_t count) {
  std::uint16_t padded[kLanes];
  store_half(padded, v);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

// ---- arithmetic ------------------------------------------------------------------------------------------
#if defined(__FMA__) || defined(__aarch64__)
#define DF_HAS_FMA 1
#endif

/// a * b + c; rounded once where the machine can, twice where it cannot.
DF_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

DF_INLINE Vec sqrt(Vec v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(v);
#elif defined(__x86_64__)
  return _mm_sqrt_ps(v);
#elif defined(__aarch64__)
  return vsqrtq_f32(v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

DF_INLINE Vec abs(Vec v) { return from_bits(bits_of(v) & 0x7fffffff); }
/// x no further up (down) than the limit; NaN stays.
DF_INLINE Vec at_most(Vec x, Vec limit) {
#if defined(__AVX512F__)
  return _mm512_min_ps(limit, x);  // of a NaN and a number these give the second operand
#elif defined(__AVX2__)
  return _mm256_min_ps(limit, x);
#elif defined(__x86_64__)
  return _mm_min_ps(limit, x);
#else
  return select(x > limit, limit, x);
#endif
}
DF_INLINE Vec at_least(Vec x, Vec limit) {
#if defined(__AVX512F__)
  return _mm512_max_ps(limit, x);
#elif defined(__AVX2__)
  return _mm256_max_ps(limit, x);
#elif defined(__x86_64__)
  return _mm_max_ps(limit, x);
#else
  return select(x < limit, limit, x);
#endif
}
DF_INLINE Vec within(Vec x, float limit) { return at_most(at_least(x, splat(-limit)), splat(limit)); }
/// NaN of either operand survives.
DF_INLINE Vec max_nan(Vec a, Vec b) { return select((a > b) | (a != a), a, b); }
DF_INLINE Vec min_nan(Vec a, Vec b) { return select((a < b) | (a != a), a, b); }

/// The rounding error of a * b: a * b is exactly product + error (barring overflow).
DF_INLINE Vec product_error(Vec a, Vec b, Vec product) {
#if defined(DF_HAS_FMA)
  return fma(a, b, -product);
#else  // Dekker: halves of 12 bits, whose products are exact
  const Vec a_high = from_bits(bits_of(a) & static_cast<std::int32_t>(0xfffff000u)), a_low = a - a_high;
  const Vec b_high = from_bits(bits_of(b) & static_cast<std::int32_t>(0xfffff000u)), b_low = b - b_high;
  return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

/// Lanes summed as a fixed tree.
DF_INLINE float sum_lanes(Vec v) {
#if defined(__AVX512F__)
  const auto half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto quarter =
      __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif defined(__AVX2__)
  const auto quarter = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
#else
  const auto quarter = v;
#endif
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}
/// NaN survives.
DF_INLINE float max_lanes(Vec v) {
#if defined(__AVX512F__)
  v = max_nan(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = max_nan(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
#elif defined(__AVX2__)
  v = max_nan(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
#endif
  const auto larger = [](float a, float b) { return a > b || a != a ? a : b; };
  return larger(larger(v[0], v[1]), larger(v[2], v[3]));
}

/// Elements 2i and 2i + 1 trade places.
DF_INLINE Vec swap_pairs(Vec v) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif defined(__AVX2__)
  return __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
  return __builtin_shufflevector(v, v, 1, 0, 3, 2);
#endif
}

// ---- 16-bit floats ---------------------------------------------------------------------------------------
DF_INLINE Vec widen_bf16(HalfVec v) {
  return reinterpret_cast<Vec>(__builtin_convertvector(v, UintVec) << 16);
}
/// To nearest even; NaN stays a quiet NaN.
DF_INLINE HalfVec narrow_bf16(Vec v) {
  const UintVec bits = reinterpret_cast<UintVec>(v);
  const UintVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UintVec quiet = (bits >> 16) | 0x40u;
  const UintVec half = v != v ? quiet : rounded;
#if defined(__AVX2__) && !defined(__AVX512F__)
  const auto wide = reinterpret_cast<__m256i>(half);
  return reinterpret_cast<HalfVec>(
      _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
#else
  return __builtin_convertvector(half, HalfVec);
#endif
}

DF_INLINE Vec widen_f16(HalfVec v) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(v));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(v));
#elif defined(__aarch64__)
  return vcvt_f32_f16(reinterpret_cast<float16x4_t>(v));
#else  // the exponent moves by 112: a product that is exact for subnormals too
  const UintVec bits = __builtin_convertvector(v, UintVec);
  const UintVec magnitude = (bits & 0x7fffu) << 13;
  const UintVec finite = reinterpret_cast<UintVec>(reinterpret_cast<Vec>(magnitude) * 0x1p112f);
  return reinterpret_cast<Vec>((((bits & 0x7c00u) == 0x7c00u) ? (magnitude | 0x7f800000u) : finite) |
                               ((bits & 0x8000u) << 16));
#endif
}
/// To nearest even; overflow becomes infinity.
DF_INLINE HalfVec narrow_f16(Vec v) {
#if defined(__AVX512F__)
  return reinterpret_cast<HalfVec>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  return reinterpret_cast<HalfVec>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__aarch64__)
  return reinterpret_cast<HalfVec>(vcvt_f16_f32(v));
#else
  const UintVec bits = reinterpret_cast<UintVec>(v);
  const UintVec magnitude = bits & 0x7fffffffu;
  const UintVec normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // adding 0.5, whose last place is 2^-24, lets the adder round to multiples of the smallest f16
  const UintVec small = reinterpret_cast<UintVec>(reinterpret_cast<Vec>(magnitude) + 0.5f) - 0x3f000000u;
  UintVec half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? UintVec{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? UintVec{} + 0x7e00u : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), HalfVec);
#endif
}

// What for_vectors hands to its body: get(p) reads and put(p, v) writes the current vector of the row that
// starts at p.
struct WholeGet {
  int64_t i;
  DF_INLINE Vec operator()(const float* row) const { return load(row + i); }
};
struct WholePut {
  int64_t i;
  DF_INLINE void operator()(float* row, Vec v) const { store(row + i, v); }
};
struct TailGet {
  int64_t i, count;
  DF_INLINE Vec operator()(const float* row) const { return load_tail(row + i, count); }
};
struct TailPut {
  int64_t i, count;
  DF_INLINE void operator()(float* row, Vec v) const { store_tail(row + i, v, count); }
};

/// Asks for the element `ahead` further on, for kernels that pause between passes over a row while memory
/// could work.
DF_INLINE void prefetch(const WholeGet& get, const float* row, int64_t ahead) {
  __builtin_prefetch(row + get.i + ahead);
}
DF_INLINE void prefetch(const TailGet&, const float*, int64_t) {}

/// body(get, put) for every vector of a row of n: full ones, then the tail through the same body.
template <class Body>
DF_INLINE void for_vectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(WholeGet{i}, WholePut{i});
  if (i < n) body(TailGet{i, n - i}, TailPut{i, n - i});
}

/// Rows that a kernel takes at a time, for a row of n: as many as stay in the first cache.
constexpr int kMaxGroup = 8;
DF_INLINE int64_t group_size(int64_t n) { return n <= 128 ? 8 : n <= 512 ? 4 : 1; }

/// body(first, count) over rows in groups of at most `size` <= kMaxGroup.
template <class Body>
DF_INLINE void for_groups(int64_t rows, int64_t size, const Body& body) {
  for (int64_t first = 0; first < rows; first += size) body(first, rows - first < size ? rows - first : size);
}

}  // namespace
}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
