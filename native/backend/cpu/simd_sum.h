// Sums over rows, in one fixed order: blocks of fixed length in f32 over several vectors of partial sums, the
// blocks' sums in f64. So the error stays near one unit of f32 for rows of any length.
#pragma once
#include "backend/cpu/simd.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

constexpr int64_t kSumBlock = 1024;

template <int N>
struct Terms {
  Vec v[N];
};
template <int N>
DF_INLINE void accumulate(Terms<N>& sum, const Terms<N>& more) {
  for (int k = 0; k < N; ++k) sum.v[k] += more.v[k];
}

/// term(get) gives N vectors; get(p) reads the row that starts at p. Lanes behind the end count as zero.
template <int N, class Term>
DF_INLINE void sum_block(int64_t begin, int64_t end, const Term& term, double (&totals)[N]) {
  Terms<N> even{}, odd{}, third{}, fourth{};
  int64_t i = begin;
  const auto at = [](int64_t start) { return [start](const float* p) { return load(p + start); }; };
  for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
    accumulate(even, term(at(i)));
    accumulate(odd, term(at(i + kLanes)));
    accumulate(third, term(at(i + 2 * kLanes)));
    accumulate(fourth, term(at(i + 3 * kLanes)));
  }
  for (; i + kLanes <= end; i += kLanes) accumulate(even, term(at(i)));
  if (i < end) {
    Terms<N> rest = term([i, end](const float* p) { return load_tail(p + i, end - i); });
    const IntVec inside = lane_mask(end - i);
    for (int k = 0; k < N; ++k) rest.v[k] = select(inside, rest.v[k], zero());
    accumulate(odd, rest);
  }
  for (int k = 0; k < N; ++k) totals[k] += sum_lanes((even.v[k] + odd.v[k]) + (third.v[k] + fourth.v[k]));
}

template <int N, class Term>
DF_INLINE void sum_terms(int64_t n, const Term& term, double (&totals)[N]) {
  for (int k = 0; k < N; ++k) totals[k] = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    sum_block(begin, n - begin < kSumBlock ? n : begin + kSumBlock, term, totals);
  }
}
template <class Term>
DF_INLINE double sum_one(int64_t n, const Term& term) {
  double total[1];
  sum_terms(
      n, [&](auto get) { return Terms<1>{{term(get)}}; }, total);
  return total[0];
}

}  // namespace
}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
