// Where the rows of the op table are written down, a function for each family.
#pragma once
#include <sstream>

#include "op_cases.h"

namespace danceflux::test {

void add_shape_rows(std::vector<OpCase>& rows);
void add_elementwise_rows(std::vector<OpCase>& rows);
void add_reduce_rows(std::vector<OpCase>& rows);
void add_matmul_rows(std::vector<OpCase>& rows);
void add_norm_rows(std::vector<OpCase>& rows);
void add_image_rows(std::vector<OpCase>& rows);
void add_attention_rows(std::vector<OpCase>& rows);
void add_fused_rows(std::vector<OpCase>& rows);
void add_update_rows(std::vector<OpCase>& rows);
void add_bench_rows(std::vector<OpCase>& rows);

// ---- builders that the families share
// ----------------------------------------------------------------------------------
using In = std::span<const Tensor>;

/// "name bf16 [3, 5]": the parts that are not empty.
template <class... Parts>
std::string label(const Parts&... parts) {
  std::string result;
  const auto append = [&](const auto& part) {
    std::ostringstream text;
    text << part;
    if (text.str().empty()) return;
    if (!result.empty()) result += ' ';
    result += text.str();
  };
  (append(parts), ...);
  return result;
}

inline OpInput normal(const Shape& shape, DType dtype = DType::f32, float scale = 1, float shift = 0) {
  return {.shape = shape, .dtype = dtype, .scale = scale, .shift = shift};
}
inline OpInput positive(const Shape& shape) { return {.shape = shape, .fill = Fill::positive}; }
/// A batch of images, tokens or rows along axis 0.
inline OpInput batch(const Shape& shape) { return {.shape = shape, .batched = shape.rank() > 1}; }
inline OpInput ids(const Shape& shape, std::int32_t bound) {
  return {.shape = shape, .dtype = DType::i32, .fill = Fill::ids, .bound = bound, .gradient = false};
}
/// An f32 input beside activations of any dtype.
inline OpInput vector(OpInput input) {
  input.vector = true;
  return input;
}
/// An input that no gradient is asked of.
inline OpInput fixed(OpInput input) {
  input.gradient = false;
  return input;
}

/// A forward with one result.
template <class F>
Forward one(F op) {
  return [op](In in) { return std::vector<Tensor>{op(in)}; };
}

OpCase linear_row(const Shape& x, std::int64_t out, DType weights, bool bias);
OpCase attention_row(std::int64_t B, std::int64_t Lq, std::int64_t Lk, std::int64_t H, std::int64_t K,
                     int bias_batch, bool causal);
OpCase conv_row(const Shape& x, const Shape& weight, const ConvArgs& args, DType weights, bool bias);
OpCase linear_activation_row(UnaryOp op, const char* op_name, const Shape& x, std::int64_t out, DType weights,
                             bool bias);
OpCase modulated_norm_row(const Shape& x);
OpCase gated_residual_row(const Shape& x);
OpCase qk_norm_rope_row(std::int64_t B, std::int64_t L, std::int64_t H, std::int64_t K);
OpCase group_norm_silu_row(const Shape& x, int groups);
OpCase flow_step_row(const Shape& x);
OpCase flow_log_prob_row(const Shape& x);

}  // namespace danceflux::test
