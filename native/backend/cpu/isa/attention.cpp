// Rows of a block of attention scores.
#include "backend/cpu/attention_kernels.h"

#include "backend/cpu/simd_math.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

constexpr float kNone = -__builtin_inff();

DF_INLINE Vec greater(Vec a, Vec b) {
  return select(a > b, a, b);
}  // may lose a NaN: exp(score - highest) brings it back

DF_INLINE float greatest_lane(Vec v) {
#if defined(__AVX512F__)
  const auto half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
             other = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto eight = half > other ? half : other;
#else
  const auto eight = v;
#endif
#if defined(__AVX2__)
  const auto low = __builtin_shufflevector(eight, eight, 0, 1, 2, 3),
             high = __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  const auto four = low > high ? low : high;
#else
  const auto four = eight;
#endif
  const auto turned = __builtin_shufflevector(four, four, 2, 3, 0, 1);
  const auto two = four > turned ? four : turned;
  return two[0] > two[1] ? two[0] : two[1];
}

// Adds the bias, hides what lies past the visible keys, up to whole vectors, and finds the highest score.
DF_INLINE float prepare(const ScoreRow& row) {
  Vec most = splat(kNone);
  int64_t at = 0;
  if (row.bias) {
    for (; at + kLanes <= row.visible; at += kLanes) {
      const Vec score = load(row.scores + at) + load(row.bias + at);
      store(row.scores + at, score);
      most = greater(most, score);
    }
  } else {
    for (; at + kLanes <= row.visible; at += kLanes) most = greater(most, load(row.scores + at));
  }
  for (; at < row.keys; at += kLanes) {
    const int64_t seen = row.visible - at;
    Vec score = splat(kNone);
    if (seen > 0) {
      score = load(row.scores + at);
      if (row.bias) score = score + load_tail(row.bias + at, seen);
      score = select(lane_mask(seen), score, splat(kNone));
    }
    store(row.scores + at, score);
    most = greater(most, score);
  }
  return greatest_lane(most);
}

float softmax_step(const ScoreRow& row, float* highest, float* sum) {
  const float before = *highest, block = prepare(row);
  const float now = before > block ? before : block;
  const float shift = now == kNone ? 0.0f : now;  // all masked so far: every weight is exp(-inf)
  Vec total = zero();
  for (int64_t at = 0; at < row.keys; at += kLanes) {
    const Vec weight = exp(load(row.scores + at) - shift);
    store(row.scores + at, weight);
    total = total + weight;
  }
  const float factor = before == now ? 1.0f : before == kNone ? 0.0f : exp(splat(before - shift))[0];
  *highest = now;
  *sum = *sum * factor + sum_lanes(total);
  return factor;
}

void softmax_slope(const ScoreRow& row, float* slopes, float lse, float delta) {
  prepare(row);
  const float shift = lse == kNone ? 0.0f : lse;
  for (int64_t at = 0; at < row.keys; at += kLanes) {
    const Vec weight = exp(load(row.scores + at) - shift);
    store(row.scores + at, weight);
    store(slopes + at, weight * (load(slopes + at) - delta));
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
