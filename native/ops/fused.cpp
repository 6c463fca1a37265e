// Fused ops: each is defined by its composition, and a device that has a kernel may go faster. The forward
// and the backward kernel are two permissions: where only the forward one is used, the gradient is that of
// the composition, run again. B batch, L tokens, D width, H heads, K head width, C channels.
#include "ops/check.h"
#include "ops/composition.h"
#include "ops/linear_gradient.h"
#include "ops/norm_checks.h"
#include "ops/ops.h"

namespace danceflux::ops {

// ---- f(linear(x))
// ------------------------------------------------------------------------------------------------------
Tensor composed::linear_activation(UnaryOp op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return unary(op, linear(x, weight, bias));
}

Tensor linear_activation(UnaryOp op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  Backend& device = enter("linear_activation", x);
  const Tensor out = device.empty(check_linear("linear_activation", x, weight, bias), x.dtype());
  const bool record = tracked(x, weight, bias);
  const Tensor rows = as_rows(x), out_rows = as_rows(out), pre = record ? like(out_rows) : Tensor();
  if (!device.taken("linear_activation", device.linear_activation(op, out_rows, pre, rows, weight, bias))) {
    const Tensor whole = in_parts([&] { return composed::linear_activation(op, x, weight, bias); });
    observed("linear_activation", whole, x);
    return whole;
  }
  observed("linear_activation", out, x);
  if (!record) return out;
  auto gradient = [op, pre, rows = tracked(weight) ? rows : Tensor(), weight,
                   shape = x.shape()](Gradients& gradients) {
    const Tensor dpre = like(pre);
    backend_of(pre).unary_backward(op, dpre, pre, as_rows(gradients.output()), 1, 0);
    add_linear_gradient(dpre, rows, weight, shape, gradients);
  };
  return recorded("linear_activation", out, {x, weight, bias}, std::move(gradient));
}

// ---- layer_norm(x) * (1 + scale) + shift
// -------------------------------------------------------------------------------
namespace {

void check_per_image(const char* op, const char* what, const Tensor& x, const Tensor& vector) {
  check_beside(op, x, vector);
  check_shape(op, what, vector, {x.dim(0), x.dim(2)});
}

/// [B, D] as [B, 1, D], to meet [B, L, D].
Tensor per_image(const Tensor& vector) { return reshape(vector, {vector.dim(0), 1, vector.dim(1)}); }

void check_modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  check_activation("modulated_norm", x);
  check_rank("modulated_norm", "x [B, L, D]", x, 3);
  check_per_image("modulated_norm", "scale", x, scale);
  check_per_image("modulated_norm", "shift", x, shift);
}

}  // namespace

Tensor composed::modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, float eps) {
  const Tensor normed = layer_norm(x, {}, {}, eps);
  return add(mul(normed, per_image(affine(scale, 1, 1))), per_image(shift));
}

Tensor modulated_norm(const Tensor& x, const Tensor& scale, const Tensor& shift, float eps) {
  Backend& device = enter("modulated_norm", x);
  check_modulated_norm(x, scale, shift);
  const Shape rows{x.dim(0) * x.dim(1)};
  const Tensor out = like(x), mean = device.empty(rows), rstd = device.empty(rows);
  if (!device.taken("modulated_norm", device.modulated_norm(out, mean, rstd, x, scale, shift, eps))) {
    // No statistics, so no backward kernel either.
    const Tensor whole = in_parts([&] { return composed::modulated_norm(x, scale, shift, eps); });
    observed("modulated_norm", whole, x, scale, shift);
    return whole;
  }
  observed("modulated_norm", out, x, scale, shift);
  if (!tracked(x, scale, shift)) return out;
  auto gradient = [x, scale, shift, mean, rstd, eps](Gradients& gradients) {
    Backend& device = backend_of(x);
    Tensor dx = gradients.place(0, x), dscale = gradients.place(1, scale), dshift = gradients.place(2, shift);
    const Declined declined =
        device.modulated_norm_backward(dx, dscale, dshift, gradients.output(), x, mean, rstd, scale);
    if (!device.taken("modulated_norm_backward", declined)) {
      const auto compose = [eps](std::span<const Tensor> in) {
        return composed::modulated_norm(in[0], in[1], in[2], eps);
      };
      return composition_gradient(compose, {x, scale, shift}, gradients);
    }
    gradients.add(0, std::move(dx));
    gradients.add(1, std::move(dscale));
    gradients.add(2, std::move(dshift));
  };
  return recorded("modulated_norm", out, {x, scale, shift}, std::move(gradient));
}

// ---- x + gate * y
// ------------------------------------------------------------------------------------------------------
Tensor composed::gated_residual(const Tensor& x, const Tensor& gate, const Tensor& y) {
  return add(x, mul(per_image(gate), y));
}

Tensor gated_residual(const Tensor& x, const Tensor& gate, const Tensor& y) {
  Backend& device = enter("gated_residual", x);
  check_activation("gated_residual", x);
  check_rank("gated_residual", "x [B, L, D]", x, 3);
  check_beside("gated_residual", x, y);
  check_shape("gated_residual", "y", y, x.shape());
  check_per_image("gated_residual", "gate", x, gate);
  Tensor out = like(x);
  if (!device.taken("gated_residual", device.gated_residual(out, x, gate, y))) {
    const NoRecording quiet;  // the backward kernel needs nothing of the forward one
    out = in_parts([&] { return composed::gated_residual(x, gate, y); });
  }
  observed("gated_residual", out, x, gate, y);
  if (!tracked(x, gate, y)) return out;
  auto gradient = [x_shape = x.shape(), gate, y](Gradients& gradients) {
    const Tensor dout = gradients.output();
    gradients.add(0, dout);
    if (!gradients.wanted(1) && !gradients.wanted(2)) return;
    Backend& device = backend_of(dout);
    Tensor dgate = gradients.place(1, gate), dy = gradients.place(2, y);
    if (!device.taken("gated_residual_backward", device.gated_residual_backward(dgate, dy, dout, gate, y))) {
      const Tensor spread = per_image(gate).expand(dout.shape());
      device.binary(BinaryOp::mul, dy, dout, y, 1);
      dgate = reshape(as_dtype(sum(dy, {1}, true), gate.dtype()), gate.shape());
      device.binary(BinaryOp::mul, dy, dout, spread, 1);
    }
    gradients.add(1, std::move(dgate));
    gradients.add(2, std::move(dy));
  };
  return recorded("gated_residual", out, {x, gate, y}, std::move(gradient));
}

// ---- rope(rms_norm(x))
// -------------------------------------------------------------------------------------------------
Tensor composed::qk_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& cos, const Tensor& sin,
                              float eps) {
  return rope(rms_norm(x, weight, eps), cos, sin);
}

Tensor qk_norm_rope(const Tensor& x, const Tensor& weight, const Tensor& cos, const Tensor& sin, float eps) {
  Backend& device = enter("qk_norm_rope", x);
  check_rope("qk_norm_rope", x, cos, sin);
  require(weight.defined(), "ERR_SHAPE", "qk_norm_rope: expected a weight, got none");
  check_vector("qk_norm_rope", "weight", x, weight, x.dim(3));
  const Tensor out = like(x), rstd = device.empty({x.dim(0) * x.dim(1) * x.dim(2)});
  if (!device.taken("qk_norm_rope", device.qk_norm_rope(out, rstd, x, weight, cos, sin, eps))) {
    // No statistics, so no backward kernel either.
    const Tensor whole = in_parts([&] { return composed::qk_norm_rope(x, weight, cos, sin, eps); });
    observed("qk_norm_rope", whole, x);
    return whole;
  }
  observed("qk_norm_rope", out, x);
  if (!tracked(x, weight)) return out;
  auto gradient = [x, rstd, weight, cos, sin, eps](Gradients& gradients) {
    Backend& device = backend_of(x);
    Tensor dx = gradients.place(0, x), dweight = gradients.wanted(1) ? like(weight) : Tensor();
    const Declined declined =
        device.qk_norm_rope_backward(dx, dweight, gradients.output(), x, rstd, weight, cos, sin);
    if (!device.taken("qk_norm_rope_backward", declined)) {
      const auto compose = [&](std::span<const Tensor> in) {
        return composed::qk_norm_rope(in[0], in[1], cos, sin, eps);
      };
      return composition_gradient(compose, {x, weight}, gradients);
    }
    gradients.add(0, std::move(dx));
    if (dweight) gradients.add(1, std::move(dweight));
  };
  return recorded("qk_norm_rope", out, {x, weight}, std::move(gradient));
}

// ---- silu(group_norm(x))
// -----------------------------------------------------------------------------------------------
Tensor composed::group_norm_silu(const Tensor& x, int groups, const Tensor& weight, const Tensor& bias,
                                 float eps) {
  return silu(group_norm(x, groups, weight, bias, eps));
}

Tensor group_norm_silu(const Tensor& x, int groups, const Tensor& weight, const Tensor& bias, float eps) {
  Backend& device = enter("group_norm_silu", x);
  check_group_norm("group_norm_silu", x, groups, weight, bias);
  const Tensor image = packed(x), out = like(x);
  const Tensor mean = device.empty({x.dim(0) * groups}), rstd = device.empty({x.dim(0) * groups});
  const NormArgs args{.kind = NormKind::group, .eps = eps, .groups = groups};
  if (!device.taken("group_norm_silu", device.group_norm_silu(out, mean, rstd, image, weight, bias, args))) {
    const Tensor whole = in_parts([&] { return composed::group_norm_silu(x, groups, weight, bias, eps); });
    observed("group_norm_silu", whole, x);
    return whole;
  }
  observed("group_norm_silu", out, x);
  if (!tracked(x, weight, bias)) return out;
  auto gradient = [x, weight, bias, groups, eps](Gradients& gradients) {
    const auto compose = [=](std::span<const Tensor> in) {
      return composed::group_norm_silu(in[0], groups, in[1], in[2], eps);
    };
    composition_gradient(compose, {x, weight, bias}, gradients);
  };
  return recorded("group_norm_silu", out, {x, weight, bias}, std::move(gradient));
}

}  // namespace danceflux::ops
