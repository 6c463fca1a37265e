// Many elements to one, along axes.
#include "ops/check.h"
#include "ops/ops.h"

namespace danceflux::ops {
namespace {

Tensor binary_of(BinaryOp op, const Tensor& a, const Tensor& b) {
  const Tensor out = like(a);
  backend_of(a).binary(op, out, a, b, 1);
  return out;
}

/// 1 / n at each of the n largest elements, 0 elsewhere. A difference is zero or, after two factors of 1e38,
/// below -1.
Tensor largest_mask(const Tensor& x, const Tensor& largest) {
  Backend& device = backend_of(x);
  const Tensor mask = binary_of(BinaryOp::sub, x, as_dtype(largest, x.dtype()).expand(x.shape()));
  device.unary(UnaryOp::affine, mask, mask, 1e38f, 0);
  device.unary(UnaryOp::affine, mask, mask, 1e38f, 1);
  device.unary(UnaryOp::clamp, mask, mask, 0, 1);
  const Tensor count = device.empty(largest.shape());
  device.reduce(ReduceOp::sum, count, mask);
  device.binary(BinaryOp::div, mask, mask, as_dtype(count, x.dtype()).expand(x.shape()), 1);
  return mask;
}

/// d(reduction)/dx times dy; `dy` and `out` have 1 where x was reduced. `x` and `out` are saved only where
/// the rule reads them.
Tensor reduce_gradient(ReduceOp op, const Tensor& dy, const Tensor& x, const Tensor& out, const Shape& shape,
                       float count) {
  Backend& device = backend_of(dy);
  if (op == ReduceOp::sum) return dy.expand(shape);
  if (op == ReduceOp::max) return binary_of(BinaryOp::mul, largest_mask(x, out), dy.expand(shape));
  const Tensor scaled = like(dy);
  device.unary(UnaryOp::affine, scaled, dy, op == ReduceOp::mean ? 1 / count : 2, 0);
  if (op == ReduceOp::mean) return scaled.expand(shape);
  return binary_of(BinaryOp::mul, x, scaled.expand(shape));
}

}  // namespace

Tensor reduce(ReduceOp op, const Tensor& x, const Shape& axes, bool keep) {
  Backend& device = enter("reduce", x);
  check_activation("reduce", x);
  Shape kept = x.shape(), dropped;
  unsigned reduced = 0;
  for (const std::int64_t axis : axes) reduced |= 1u << x.shape().index(static_cast<int>(axis));
  for (int axis = 0; axis < x.rank(); ++axis) {
    if (reduced >> axis & 1) {
      kept[axis] = 1;
    } else {
      dropped.push_back(x.dim(axis));
    }
  }
  require(op == ReduceOp::sum || op == ReduceOp::sum_of_squares || x.numel() > 0 || kept.numel() == 0,
          "ERR_SHAPE", "reduce: expected at least one element for a mean or a maximum, got ", x.shape());
  const Tensor total = device.empty(kept);
  device.reduce(op, total, x);
  const Tensor out = keep ? total : total.view(dropped);
  observed("reduce", out, x);
  if (!tracked(x)) return out;
  const bool reads_x = op == ReduceOp::max || op == ReduceOp::sum_of_squares;
  auto gradient = [op, x = reads_x ? x : Tensor(), total = op == ReduceOp::max ? total : Tensor(), kept,
                   shape = x.shape(), dtype = x.dtype()](Gradients& gradients) {
    const float count = static_cast<float>(shape.numel()) / static_cast<float>(kept.numel());
    const Tensor dy = as_dtype(reshape(gradients.output(), kept), dtype);
    gradients.add(0, reduce_gradient(op, dy, x, total, shape, count));
  };
  return recorded("reduce", out, {x}, std::move(gradient));
}

Tensor sum_to(const Tensor& x, const Shape& shape) {
  enter("sum_to", x);
  if (x.shape() == shape) return x;
  const int extra = x.rank() - shape.rank();
  require(extra >= 0, "ERR_SHAPE", "sum_to: expected a shape that broadcasts to ", x.shape(), ", got ",
          shape);
  Shape axes;
  for (int axis = 0; axis < x.rank(); ++axis) {
    const std::int64_t target = axis < extra ? 1 : shape[axis - extra];
    require(target == 1 || target == x.dim(axis), "ERR_SHAPE", "sum_to: expected a shape that broadcasts to ",
            x.shape(), ", got ", shape);
    if (target != x.dim(axis)) axes.push_back(axis);
  }
  if (axes.rank() == 0) return reshape(x, shape);
  return reshape(cast(sum(x, axes, true), x.dtype()), shape);
}

Tensor softmax(const Tensor& x) {
  Backend& device = enter("softmax", x);
  check_activation("softmax", x);
  require(x.rank() > 0, "ERR_SHAPE", "softmax: expected at least one axis, got ", x.shape());
  const Tensor out = like(x);
  device.softmax(out, x);
  observed("softmax", out, x);
  if (!tracked(x)) return out;
  return recorded("softmax", out, {x}, [out](Gradients& gradients) {
    Tensor dx = like(out);
    backend_of(out).softmax_backward(dx, out, gradients.output());
    gradients.add(0, std::move(dx));
  });
}

}  // namespace danceflux::ops
