#include "fma_peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "backend/cpu/isa_select.h"
#include "backend/cpu/parallel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace danceflux::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kTurns = 20000, kChains = 12;

// Twelve named chains: an array of them would be kept in memory.
#define DF_CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DF_CHAIN_LOOP(type, init, step, sum, total) \
  DF_CHAINS(init)                                   \
  for (int turn = 0; turn < kTurns; ++turn) {       \
    DF_CHAINS(step)                                 \
    asm volatile("" : "+r"(turn));                  \
  }                                                 \
  type total = c0;                                  \
  DF_CHAINS(sum)

#if defined(__x86_64__)
#define DF_INIT512(i) __m512 c##i = _mm512_set1_ps(i);
#define DF_STEP512(i) c##i = _mm512_fmadd_ps(c##i, x, y);
#define DF_SUM512(i) total = _mm512_add_ps(total, c##i);
__attribute__((target("avx512f"))) float chains_avx512(float seed) {
  const __m512 x = _mm512_set1_ps(seed), y = _mm512_set1_ps(1 - seed);
  DF_CHAIN_LOOP(__m512, DF_INIT512, DF_STEP512, DF_SUM512, total)
  return _mm512_cvtss_f32(total);
}
#define DF_INIT256(i) __m256 c##i = _mm256_set1_ps(i);
#define DF_STEP256(i) c##i = _mm256_fmadd_ps(c##i, x, y);
#define DF_SUM256(i) total = _mm256_add_ps(total, c##i);
__attribute__((target("avx2,fma"))) float chains_avx2(float seed) {
  const __m256 x = _mm256_set1_ps(seed), y = _mm256_set1_ps(1 - seed);
  DF_CHAIN_LOOP(__m256, DF_INIT256, DF_STEP256, DF_SUM256, total)
  return _mm256_cvtss_f32(total);
}
#define DF_INIT128(i) __m128 c##i = _mm_set1_ps(i);
#define DF_STEP128(i) c##i = _mm_add_ps(_mm_mul_ps(c##i, x), y);
#define DF_SUM128(i) total = _mm_add_ps(total, c##i);
float chains_base(float seed) {
  const __m128 x = _mm_set1_ps(seed), y = _mm_set1_ps(1 - seed);
  DF_CHAIN_LOOP(__m128, DF_INIT128, DF_STEP128, DF_SUM128, total)
  return _mm_cvtss_f32(total);
}
#elif defined(__aarch64__)
#define DF_INIT128(i) float32x4_t c##i = vdupq_n_f32(i);
#define DF_STEP128(i) c##i = vfmaq_f32(y, c##i, x);
#define DF_SUM128(i) total = vaddq_f32(total, c##i);
float chains_base(float seed) {
  const float32x4_t x = vdupq_n_f32(seed), y = vdupq_n_f32(1 - seed);
  DF_CHAIN_LOOP(float32x4_t, DF_INIT128, DF_STEP128, DF_SUM128, total)
  return vgetq_lane_f32(total, 0);
}
#else
float chains_base(float seed) {
  float sum = seed;
  for (int turn = 0; turn < kTurns * kChains; ++turn) sum = sum * seed + 1;
  return sum;
}
#endif

struct Chains {
  float (*run)(float);
  double lanes;
};

Chains chains_of(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") return {chains_avx512, 16};
  if (isa == "avx2") return {chains_avx2, 8};
  return {chains_base, 4};
#elif defined(__aarch64__)
  return {chains_base, 4};
#else
  return {chains_base, 1};
#endif
}

}  // namespace

double fma_peak(int threads, const std::string& isa) {
  const Chains chains = chains_of(cpu::select_isa(isa).name);
  std::vector<double> best(static_cast<std::size_t>(threads));
  std::vector<float> sinks(best.size());
  cpu::ThreadPool pool(threads);
  // each thread keeps its own best window: they need not be lucky at the same moment
  pool.run(threads, [&](std::int64_t task, int) {
    for (int window = 0; window < 600; ++window) {
      const auto start = Clock::now();
      sinks[static_cast<std::size_t>(task)] += chains.run(0.5f);
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      best[static_cast<std::size_t>(task)] = std::max(best[static_cast<std::size_t>(task)],
                                                      2.0 * chains.lanes * kChains * kTurns / seconds * 1e-9);
    }
  });
  double sum = 0;
  for (double value : best) sum += value;
  return sum;
}

}  // namespace danceflux::bench
