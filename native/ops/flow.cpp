// Steps along a flow, fused as the ops of fused.cpp are. B rows, n elements each.
#include "ops/check.h"
#include "ops/composition.h"
#include "ops/ops.h"

namespace danceflux::ops {
namespace {

enum Column { kCx, kCv, kStd, kWeight, kConstant, kColumns };

/// Numbers of each row [B], to meet x [B, ...].
Tensor column(const Tensor& coefficients, Column which, const Tensor& x) {
  Shape shape{x.dim(0)};
  while (shape.rank() < x.rank()) shape.push_back(1);
  return reshape(narrow(coefficients, 1, which, 1), shape);
}

Tensor mean_of(const Tensor& x, const Tensor& v, const Tensor& coefficients) {
  return add(mul(x, column(coefficients, kCx, x)), mul(v, column(coefficients, kCv, x)));
}

/// [B], from where the row would have come to on average and where it came to.
Tensor density(const Tensor& average, const Tensor& next, const Tensor& coefficients) {
  const Tensor distance = unary(UnaryOp::square, sub(next, average));
  Shape axes;
  for (int axis = 1; axis < next.rank(); ++axis) axes.push_back(axis);
  const Tensor weighted = mul(mean(distance, axes, true), column(coefficients, kWeight, next));
  return reshape(add_scaled(affine(weighted, -1), column(coefficients, kConstant, next), -1), {next.dim(0)});
}

void check_flow(const char* op, const Tensor& x, const Tensor& v, const char* what, const Tensor& third,
                const Tensor& coefficients) {
  require(x.rank() >= 2 && (x.numel() > 0 || x.dim(0) == 0), "ERR_SHAPE", op,
          ": expected rows of at least one element, got ", x.shape());
  require(x.dtype() == DType::f32, "ERR_DTYPE", op, ": expected x in f32, got ", name_of(x.dtype()));
  const auto check = [&](const char* name, const Tensor& other, const Shape& shape) {
    check_beside(op, x, other);
    check_shape(op, name, other, shape);
  };
  check("v", v, x.shape());
  if (third) check(what, third, x.shape());
  check("coefficients", coefficients, {x.dim(0), kColumns});
}

}  // namespace

FlowStepped composed::flow_step(const Tensor& x, const Tensor& v, const Tensor& noise,
                                const Tensor& coefficients) {
  const Tensor mean = mean_of(x, v, coefficients);
  if (!noise) return {mean, {}};
  const Tensor next = add(mean, mul(noise, column(coefficients, kStd, x)));
  return {next, density(mean, next, coefficients)};
}

Tensor composed::flow_log_prob(const Tensor& x, const Tensor& v, const Tensor& next,
                               const Tensor& coefficients) {
  return density(mean_of(x, v, coefficients), next, coefficients);
}

FlowStepped flow_step(const Tensor& x, const Tensor& v, const Tensor& noise, const Tensor& coefficients) {
  Backend& device = enter("flow_step", x);
  check_flow("flow_step", x, v, "noise", noise, coefficients);
  FlowStepped out;
  // A step is drawn before anything is learned from it; who wants a gradient all the same gets the parts.
  const bool record = tracked(x, v, noise, coefficients);
  if (!record) {
    out.next = device.empty(x.shape());
    if (noise) out.log_prob = device.empty({x.dim(0)});
  }
  if (record ||
      !device.taken("flow_step", device.flow_step(out.next, out.log_prob, x, v, noise, coefficients))) {
    const Unwatched inside;
    out = composed::flow_step(x, v, noise, coefficients);
  }
  observed("flow_step", out.next, x, v, noise);
  if (out.log_prob) observed("flow_log_prob", out.log_prob, x, v, out.next);
  return out;
}

Tensor flow_log_prob(const Tensor& x, const Tensor& v, const Tensor& next, const Tensor& coefficients) {
  Backend& device = enter("flow_log_prob", x);
  require(next.defined(), "ERR_SHAPE", "flow_log_prob: expected a next, got none");
  check_flow("flow_log_prob", x, v, "next", next, coefficients);
  const Tensor out = device.empty({x.dim(0)});
  if (!device.taken("flow_log_prob", device.flow_log_prob(out, x, v, next, coefficients))) {
    const Tensor whole = in_parts([&] { return composed::flow_log_prob(x, v, next, coefficients); });
    observed("flow_log_prob", whole, x, v, next);
    return whole;
  }
  observed("flow_log_prob", out, x, v, next);
  if (!tracked(x, v, next, coefficients)) return out;
  auto gradient = [x, v, next, coefficients](Gradients& gradients) {
    Backend& device = backend_of(x);
    const bool by_kernel = !gradients.wanted(2) && !gradients.wanted(3);
    Tensor dx = gradients.wanted(0) ? device.empty(x.shape()) : Tensor(),
           dv = gradients.wanted(1) ? device.empty(v.shape()) : Tensor();
    if (!by_kernel ||
        !device.taken("flow_log_prob_backward",
                      device.flow_log_prob_backward(dx, dv, gradients.output(), x, v, next, coefficients))) {
      const auto compose = [](std::span<const Tensor> in) {
        return composed::flow_log_prob(in[0], in[1], in[2], in[3]);
      };
      return composition_gradient(compose, {x, v, next, coefficients}, gradients);
    }
    if (dx) gradients.add(0, std::move(dx));
    if (dv) gradients.add(1, std::move(dv));
  };
  return recorded("flow_log_prob", out, {x, v, next, coefficients}, std::move(gradient));
}

}  // namespace danceflux::ops
