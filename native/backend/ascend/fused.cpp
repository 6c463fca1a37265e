// Shortcuts made of few operators. B batch, L tokens, D width.
#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {

/// Row b of [B, ...], without its axis.
Tensor AscendBackend::image_of(const Tensor& x, std::int64_t b) const {
  Shape shape;
  for (int axis = 1; axis < x.rank(); ++axis) shape.push_back(x.dim(axis));
  return x.narrow(0, b, 1).view(shape);
}

// A product and a map: CANN's matrix operators take no activation. What is saved is the node between them.
Declined AscendBackend::linear_activation(UnaryOp op, const Tensor& out, const Tensor& pre, const Tensor& x,
                                          const Tensor& weight, const Tensor& bias) {
  if (out.numel() == 0) return {};
  const Tensor product = pre ? pre : empty(out.shape(), out.dtype());
  matmul(product, x, weight.transpose(0, 1), bias, {});
  unary(op, out, product, 1, 0);
  return {};
}

// For one image, scale and shift are the weight and bias of a layer norm, whose gradients are theirs: an
// operator per image, and no pass over the tokens besides.
Declined AscendBackend::modulated_norm(const Tensor& out, const Tensor& mean, const Tensor& rstd,
                                       const Tensor& x, const Tensor& scale, const Tensor& shift, float eps) {
  if (out.numel() == 0) return {};
  const std::int64_t B = x.dim(0), L = x.dim(1), D = x.dim(2);
  const Result result(*this, out);
  const Tensor tokens = dense(x), offset = dense(shift, x.dtype()), gain = empty({B, D}, x.dtype());
  launch_("modulated_norm", ops().aclnnAdds, scale, F32{1}, F32{1}, gain);
  for (std::int64_t b = 0; b < B; ++b) {
    launch_("modulated_norm", ops().aclnnLayerNorm, image_of(tokens, b), IntList{D}, image_of(gain, b),
            image_of(offset, b), f64{eps}, image_of(result.tensor(), b),
            mean.narrow(0, b * L, L).view({L, 1}), rstd.narrow(0, b * L, L).view({L, 1}));
  }
  result.finish();
  return {};
}

Declined AscendBackend::modulated_norm_backward(const Tensor& dx, const Tensor& dscale, const Tensor& dshift,
                                                const Tensor& dy, const Tensor& x, const Tensor& mean,
                                                const Tensor& rstd, const Tensor& scale) {
  if (dx.numel() == 0) {
    if (dscale.numel() > 0) fill(dscale, 0);
    if (dshift.numel() > 0) fill(dshift, 0);
    return {};
  }
  const std::int64_t B = x.dim(0), L = x.dim(1), D = x.dim(2);
  const Result data(*this, dx, DType::f32), gains(*this, dscale, DType::f32),
      shifts(*this, dshift, DType::f32);
  const Tensor tokens = dense(x, DType::f32), slope = dense(dy, DType::f32), gain = empty({B, D});
  launch_("modulated_norm_backward", ops().aclnnAdds, as(scale, DType::f32), F32{1}, F32{1}, gain);
  for (std::int64_t b = 0; b < B; ++b) {
    const Tensor weight = image_of(gain, b);
    launch_("modulated_norm_backward", ops().aclnnLayerNormBackward, image_of(slope, b), image_of(tokens, b),
            IntList{D}, mean.narrow(0, b * L, L).view({L, 1}), rstd.narrow(0, b * L, L).view({L, 1}), weight,
            weight, BoolList{true, true, true}, image_of(data.tensor(), b), image_of(gains.tensor(), b),
            image_of(shifts.tensor(), b));
  }
  data.finish();
  gains.finish();
  shifts.finish();
  return {};
}

Declined AscendBackend::gated_residual(const Tensor& out, const Tensor& x, const Tensor& gate,
                                       const Tensor& y) {
  if (out.numel() == 0) return {};
  const Result result(*this, out);
  const Tensor spread = dense(gate).view({x.dim(0), 1, x.dim(2)});
  launch_("gated_residual", ops().aclnnAddcmul, x, y, spread, F32{1}, result.tensor());
  result.finish();
  return {};
}

Declined AscendBackend::gated_residual_backward(const Tensor& dgate, const Tensor& dy, const Tensor& dout,
                                                const Tensor& gate, const Tensor& y) {
  if (dy.numel() == 0) {
    if (dgate.numel() > 0) fill(dgate, 0);
    return {};
  }
  const std::int64_t B = y.dim(0), L = y.dim(1), D = y.dim(2);
  const Result gates(*this, dgate, DType::f32), data(*this, dy);
  const Tensor product = empty({B, L, D});
  launch_("gated_residual_backward", ops().aclnnMul, as(dout, DType::f32), as(y, DType::f32), product);
  launch_("gated_residual_backward", ops().aclnnReduceSum, product, IntList{1}, false, kAclFloat,
          gates.tensor());
  launch_("gated_residual_backward", ops().aclnnMul, dout, dense(gate).view({B, 1, D}), data.tensor());
  data.finish();
  gates.finish();
  return {};
}

}  // namespace danceflux::ascend
