// Rows of a block of attention scores.
#include "backend/cpu/attention_kernels.h"

#include "backend/cpu/simd_math.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

constexpr float kNone = -__builtin_inff();

// Scores with their bias; -inf in the lanes of masked keys and past the end.
DF_INLINE Vec biased(const ScoreRow& row, int64_t at) {
  const int64_t count = row.visible - at;
  if (count <= 0) return splat(kNone);
  const bool whole = count >= kLanes;
  Vec score = whole ? load(row.scores + at) : load_tail(row.scores + at, count);
  if (row.bias) score = score + (whole ? load(row.bias + at) : load_tail(row.bias + at, count));
  return whole ? score : select(lane_mask(count), score, splat(kNone));
}

DF_INLINE void put(float* to, Vec v, int64_t count) { count >= kLanes ? store(to, v) : store_tail(to, v, count); }

float softmax_step(const ScoreRow& row, float* highest, float* sum) {
  Vec most = splat(kNone);
  for (int64_t at = 0; at < row.visible; at += kLanes) most = max_nan(most, biased(row, at));
  const float before = *highest, block = max_lanes(most);
  const float now = before > block || before != before ? before : block;
  const float shift = now == kNone ? 0.0f : now;  // all masked so far: every weight is exp(-inf)
  Vec total = zero();
  for (int64_t at = 0; at < row.keys; at += kLanes) {
    const Vec weight = exp(biased(row, at) - shift);
    total = total + weight;
    put(row.scores + at, weight, row.keys - at);
  }
  const float factor = before == now ? 1.0f : exp(splat(before - shift))[0];
  *highest = now;
  *sum = *sum * factor + sum_lanes(total);
  return factor;
}

void softmax_slope(const ScoreRow& row, float* slopes, float lse, float delta) {
  const float shift = lse == kNone ? 0.0f : lse;
  for (int64_t at = 0; at < row.keys; at += kLanes) {
    const int64_t count = row.keys - at;
    const Vec weight = exp(biased(row, at) - shift);
    const Vec slope = count >= kLanes ? load(slopes + at) : load_tail(slopes + at, count);
    put(row.scores + at, weight, count);
    put(slopes + at, weight * (slope - delta), count);
  }
}

void scale(float* x, int64_t n, float factor) {
  for_vectors(n, [&](auto read, auto write) { write(x, read(x) * factor); });
}

float dot(const float* a, const float* b, int64_t n) {
  Vec sum = zero();
  for_vectors(n, [&](auto read, auto) { sum = fma(read(a), read(b), sum); });
  return sum_lanes(sum);
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {softmax_step, softmax_slope, scale, dot};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
