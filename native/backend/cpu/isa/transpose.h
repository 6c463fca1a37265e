// Squares of floats transposed in registers.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored \
    "-Wmaybe-uninitialized"  // g++ 12 takes _mm512_undefined_ps of its own headers for a mistake
#endif
#include "backend/cpu/simd.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

// Writes column k of the kLanes rows to to + k * width. Each step doubles the length of the runs that belong
// together.
#if DANCEFLUX_ISA_AVX512
DF_INLINE void store_transposed(float* to, int64_t width, Vec (&row)[16]) {
  Vec pair[16], quad[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512d low = _mm512_castps_pd(pair[i + half]), high = _mm512_castps_pd(pair[i + 2 + half]);
      quad[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      quad[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const Vec a = _mm512_shuffle_f32x4(quad[k], quad[4 + k], 0x44),
              b = _mm512_shuffle_f32x4(quad[k], quad[4 + k], 0xee);
    const Vec c = _mm512_shuffle_f32x4(quad[8 + k], quad[12 + k], 0x44);
    const Vec d = _mm512_shuffle_f32x4(quad[8 + k], quad[12 + k], 0xee);
    store(to + k * width, _mm512_shuffle_f32x4(a, c, 0x88));
    store(to + (4 + k) * width, _mm512_shuffle_f32x4(a, c, 0xdd));
    store(to + (8 + k) * width, _mm512_shuffle_f32x4(b, d, 0x88));
    store(to + (12 + k) * width, _mm512_shuffle_f32x4(b, d, 0xdd));
  }
}
#elif DANCEFLUX_ISA_AVX2
DF_INLINE void store_transposed(float* to, int64_t width, Vec (&row)[8]) {
  Vec pair[8], quad[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256d low = _mm256_castps_pd(pair[i + half]), high = _mm256_castps_pd(pair[i + 2 + half]);
      quad[i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
      quad[i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    store(to + k * width, _mm256_permute2f128_ps(quad[k], quad[4 + k], 0x20));
    store(to + (4 + k) * width, _mm256_permute2f128_ps(quad[k], quad[4 + k], 0x31));
  }
}
#else
DF_INLINE void store_transposed(float* to, int64_t width, Vec (&row)[4]) {
  for (int k = 0; k < 4; ++k) store(to + k * width, Vec{row[0][k], row[1][k], row[2][k], row[3][k]});
}
#endif

}  // namespace
}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
