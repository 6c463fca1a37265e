// The algebra: every op there is. Ops check shapes, make their output, call the device and, while a tape is
// open, leave their gradient on it. Nothing else calls a device's primitives, but the tape.
//
// Legend: B batch, L tokens, D width, H heads, K head width, M/N/K matrix sizes, C channels, V vocabulary.
// All throw ERR_SHAPE or ERR_DTYPE as "op: expected ..., got ...", and ERR_ABORTED when the running job was
// stopped.
#pragma once
#include <span>
#include <vector>

#include "autograd/tape.h"
#include "backend/backend.h"
#include "core/tensor.h"

namespace danceflux::ops {

// ---- making (ops/shape.cpp); no gradients
// -----------------------------------------------------------------------------
Tensor empty_like(const Tensor& x);
Tensor full(Backend& device, const Shape& shape, float value);
/// Uploads host numbers as f32, converted to `dtype`.
Tensor from_host(Backend& device, const Shape& shape, std::span<const float> values,
                 DType dtype = DType::f32);
Tensor from_host(Backend& device, const Shape& shape, std::span<const std::int32_t> values);
/// Downloads as f32 whatever the dtype and strides (waits for the device).
std::vector<float> to_host(const Tensor& x);

// ---- shape (ops/shape.cpp): views where the strides allow, copies otherwise
// --------------------------------------------
Tensor contiguous(const Tensor& x);
Tensor cast(const Tensor& x, DType dtype);
/// One dimension may be -1.
Tensor reshape(const Tensor& x, const Shape& shape);
Tensor permute(const Tensor& x, const Shape& order);
Tensor transpose(const Tensor& x, int axis_a, int axis_b);
Tensor narrow(const Tensor& x, int axis, std::int64_t start, std::int64_t length);
Tensor expand(const Tensor& x, const Shape& shape);
Tensor concat(std::span<const Tensor> parts, int axis);
/// Views of consecutive ranges along `axis`; the lengths must add up.
std::vector<Tensor> split(const Tensor& x, std::span<const std::int64_t> lengths, int axis);
/// [B, C, h, w] -> [B, C, 2h, 2w], nearest.
Tensor upsample_nearest_2x(const Tensor& x);

// ---- elementwise (ops/elementwise.cpp)
// ---------------------------------------------------------------------------------
Tensor unary(UnaryOp op, const Tensor& x, float a = 1, float b = 0);
/// NumPy broadcasting.
Tensor binary(BinaryOp op, const Tensor& a, const Tensor& b, float b_scale = 1);
inline Tensor add(const Tensor& a, const Tensor& b) { return binary(BinaryOp::add, a, b); }
inline Tensor sub(const Tensor& a, const Tensor& b) { return binary(BinaryOp::sub, a, b); }
inline Tensor mul(const Tensor& a, const Tensor& b) { return binary(BinaryOp::mul, a, b); }
inline Tensor div(const Tensor& a, const Tensor& b) { return binary(BinaryOp::div, a, b); }
/// a + scale * b
inline Tensor add_scaled(const Tensor& a, const Tensor& b, float scale) {
  return binary(BinaryOp::add, a, b, scale);
}
/// scale * x + shift
inline Tensor affine(const Tensor& x, float scale, float shift = 0) {
  return unary(UnaryOp::affine, x, scale, shift);
}
inline Tensor silu(const Tensor& x) { return unary(UnaryOp::silu, x); }

// ---- reductions (ops/reduce.cpp)
// ---------------------------------------------------------------------------------------
/// Over `axes`, which stay as 1 when `keep`; f32.
Tensor reduce(ReduceOp op, const Tensor& x, const Shape& axes, bool keep = false);
inline Tensor sum(const Tensor& x, const Shape& axes, bool keep = false) {
  return reduce(ReduceOp::sum, x, axes, keep);
}
inline Tensor mean(const Tensor& x, const Shape& axes, bool keep = false) {
  return reduce(ReduceOp::mean, x, axes, keep);
}
/// Sums `x` down to `shape`, which broadcasts to it: the gradient of broadcasting.
Tensor sum_to(const Tensor& x, const Shape& shape);
/// Over the last axis.
Tensor softmax(const Tensor& x);

// ---- matrices (ops/matmul.cpp)
// -----------------------------------------------------------------------------------------
/// [..., M, K] @ [..., K, N], up to two leading axes that broadcast.
Tensor matmul(const Tensor& a, const Tensor& b, float alpha = 1);
/// x [..., Din] @ weight[Dout, Din]^T + bias [Dout] (may be undefined).
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias);

// ---- norms and rope (ops/norm.cpp)
// -------------------------------------------------------------------------------------
/// x [..., D]; weight and bias [D], may be undefined.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps);
Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps);
/// x [B, C, ...]; weight and bias [C], may be undefined.
Tensor group_norm(const Tensor& x, int groups, const Tensor& weight, const Tensor& bias, float eps);
/// x [B, L, H, K], cos and sin [L, K/2] f32: rotates adjacent pairs.
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin);

// ---- rows (ops/rows.cpp)
// -----------------------------------------------------------------------------------------------
/// table [V, D] at ids [...] (i32 on the device; `host_ids` are the same numbers, checked against V) -> [...,
/// D].
Tensor embedding(const Tensor& table, const Tensor& ids, std::span<const std::int32_t> host_ids);

// ---- images (ops/conv.cpp)
// ---------------------------------------------------------------------------------------------
/// x [B, C, h, w], weight [O, C, kh, kw], bias [O] or undefined -> [B, O, oh, ow].
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvArgs& args);

// ---- attention (ops/attention.cpp)
// -------------------------------------------------------------------------------------
/// q [B, Lq, H, K], k and v [B, Lk, H, K], bias [1 or B, H, Lq, Lk] or undefined -> [B, Lq, H, K].
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                 const AttentionArgs& args);

// ---- fused (ops/fused.cpp): each is defined by its composition of the ops above
// ----------------------------------------
/// f(linear(x, weight, bias))
Tensor linear_activation(UnaryOp op, const Tensor& x, const Tensor& weight, const Tensor& bias);
/// layer_norm(x) * (1 + scale) + shift; x [B, L, D], scale and shift [B, D].
Tensor modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, float eps);
/// x + gate * y; x and y [B, L, D], gate [B, D].
Tensor gated_residual(const Tensor& x, const Tensor& gate, const Tensor& y);
/// rope(rms_norm(x) * weight); x [B, L, H, K], weight [K], cos and sin [L, K/2].
Tensor qk_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& cos, const Tensor& sin, float eps);
/// silu(group_norm(x))
Tensor group_norm_silu(const Tensor& x, int groups, const Tensor& weight, const Tensor& bias, float eps);

// ---- steps along a flow (ops/flow.cpp): fused too
// ---------------------------------------------------------------------------------------------
/// Where a step leads, and how likely it was.
struct FlowStepped {
  Tensor next;      // [B, ...]
  Tensor log_prob;  // [B]; undefined without noise
};
/// mean = cx x + cv v, next = mean + std noise, log_prob = -weight * mean over a row of (next - mean)^2 -
/// constant. x, v and noise [B, ...] of one shape, coefficients [B, 5]: cx, cv, std, weight, constant; all
/// f32. Without noise next is the mean. train/flow_step.h tells where the coefficients come from.
FlowStepped flow_step(const Tensor& x, const Tensor& v, const Tensor& noise, const Tensor& coefficients);
/// [B]: the log_prob of a given next [B, ...], with the bits that flow_step gave for it.
Tensor flow_log_prob(const Tensor& x, const Tensor& v, const Tensor& next, const Tensor& coefficients);

/// The definitions themselves, as oracle for tests and as what runs when the device declines.
namespace composed {
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                 const AttentionArgs& args);
Tensor linear_activation(UnaryOp op, const Tensor& x, const Tensor& weight, const Tensor& bias);
Tensor modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, float eps);
Tensor gated_residual(const Tensor& x, const Tensor& gate, const Tensor& y);
Tensor qk_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& cos, const Tensor& sin, float eps);
Tensor group_norm_silu(const Tensor& x, int groups, const Tensor& weight, const Tensor& bias, float eps);
FlowStepped flow_step(const Tensor& x, const Tensor& v, const Tensor& noise, const Tensor& coefficients);
Tensor flow_log_prob(const Tensor& x, const Tensor& v, const Tensor& next, const Tensor& coefficients);
}  // namespace composed

// ---- update (ops/update.cpp): in place, never recorded
// -----------------------------------------------------------------
void adamw_(const Tensor& parameter, const Tensor& master, const Tensor& m, const Tensor& v,
            const Tensor& gradient, const AdamWArgs& args);
void fill_(const Tensor& x, float value);
/// Any strides, any float dtypes.
void copy_(const Tensor& to, const Tensor& from);
/// to = to + scale * from
void add_(const Tensor& to, const Tensor& from, float scale = 1);
/// average = decay * average + (1 - decay) * value; 1 - decay is taken in double, where 0.9999 keeps its
/// digits.
void lerp_(const Tensor& average, const Tensor& value, double decay);
/// Sum of squares over all tensors, as a double from f32 partial sums in a fixed order (waits for the
/// device).
double sum_of_squares(std::span<const Tensor> tensors);
/// out [N] = sums of squares of the N equal parts of `x`, both contiguous and f32, each in a fixed order.
void sums_of_squares_(const Tensor& out, const Tensor& x);

}  // namespace danceflux::ops
