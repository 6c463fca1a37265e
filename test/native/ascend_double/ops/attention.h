// Flash attention, as both directions see it: B batch, N heads, S positions, D head width.
#pragma once
#include "ascend_double/ops/dense.h"
#include "ascend_double/ops/gemm.h"

namespace ascend_double {

struct AttentionSizes {
  std::int64_t batch = 0, heads = 0, key_heads = 0, queries = 0, keys = 0, width = 0, value_width = 0;
};

struct AttentionInputs {
  AttentionSizes sizes;
  Operand q, k, v;     // as [B, N, S, D] views
  Operand bias, mask;  // may be undefined
  float scale = 1;
  bool bias_scaled = true;  // pseType 1: scale * (QK + bias); 0: scale * QK + bias
  std::int64_t sparse_mode = 0, before = 0, after = 0;
};

struct AttentionArguments {
  Tensor q, k, v, bias, drop_mask, padding_mask, mask;
  double scale, keep_probability;
  std::int64_t before, after, heads;
  const char* layout;
  std::int64_t inner_precise, sparse_mode, bias_type;
};

/// Adds q, k, v, bias, dropMask, paddingMask, attenMask to the plan, in that order, with `between` called
/// behind v.
AttentionInputs attention_inputs(Plan& plan, const AttentionArguments& arguments,
                                 const std::function<void(Plan&, const AttentionInputs&)>& between);

/// The view [B, N, S, D] of a tensor in the layout of the arguments.
Operand as_heads(Plan& plan, const Operand& operand, const std::string& layout, std::int64_t heads,
                 const char* name);

/// Scores of one head, scaled, biased and masked (-inf); q [queries, D], k [keys, D].
class Scores {
 public:
  Scores(const Launch& launch, const AttentionInputs& inputs);
  void compute(std::int64_t batch, std::int64_t head, const float* q, const float* k, float* scores) const;

 private:
  bool masked(std::int64_t row, std::int64_t column) const;
  const AttentionInputs& inputs_;
  Dense<float> bias_, mask_;
  std::int64_t bias_steps_[3] = {}, mask_steps_[2] = {};  // batch, head, row
};

}  // namespace ascend_double
