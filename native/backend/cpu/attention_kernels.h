// What attention needs of an instruction set beside matrix products: one row of a block of scores at a time.
// Plain data and function pointers: included by isa/*.cpp.
#pragma once
#include <cstdint>

namespace danceflux::cpu {

/// Scores of one query against `keys` keys that follow each other, with room for whole vectors. `bias` may be
/// null. Keys from `visible` on are masked.
struct ScoreRow {
  float* scores;
  std::int64_t keys, visible;
  const float* bias;
};

struct AttentionKernels {
  /// scores become exp(scores + bias - highest), where `highest` and `sum` are carried from block to block of
  /// a query (from -inf and 0). Returns the factor that brings what was summed before to the new `highest`.
  float (*softmax_step)(const ScoreRow& row, float* highest, float* sum);
  /// scores become the weights p = exp(scores + bias - lse), and slopes, which come as dp, become p * (dp -
  /// delta).
  void (*softmax_slope)(const ScoreRow& row, float* slopes, float lse, float delta);
  void (*scale)(float* x, std::int64_t n, float factor);
  float (*dot)(const float* a, const float* b, std::int64_t n);
};

}  // namespace danceflux::cpu
