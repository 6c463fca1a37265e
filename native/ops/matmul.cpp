// Products of matrices. M, N, K matrix sizes; Din, Dout widths of a linear layer.
#include "ops/check.h"
#include "ops/linear_gradient.h"
#include "ops/ops.h"

namespace danceflux::ops {
namespace {

Shape with_matrix(const Shape& batch, std::int64_t rows, std::int64_t columns) {
  Shape shape = batch;
  shape.push_back(rows);
  shape.push_back(columns);
  return shape;
}

Shape batch_of(const Tensor& x) {
  Shape batch;
  for (int axis = 0; axis < x.rank() - 2; ++axis) batch.push_back(x.dim(axis));
  return batch;
}

Tensor broadcast_batch(const Tensor& x, const Shape& batch) {
  if (x.rank() - 2 == batch.rank() && batch_of(x) == batch) return x;
  return x.expand(with_matrix(batch, x.dim(-2), x.dim(-1)));
}

/// left @ right, given away as the gradient of input `i`, whose shape may lack batch axes that were
/// broadcast. Written straight into the accumulator where there is one.
void add_product(int i, const Shape& shape, const Tensor& left, const Tensor& right, float alpha, DType dtype,
                 Gradients& gradients) {
  Backend& device = backend_of(left);
  const Shape full = with_matrix(batch_of(left), left.dim(-2), right.dim(-1));
  if (full == shape) {
    if (const Tensor sum = gradients.accumulator(i)) {
      return device.matmul(sum, left, right, {}, {.alpha = alpha, .accumulate = true});
    }
  }
  Tensor product = device.empty(full, dtype);
  device.matmul(product, left, right, {}, {.alpha = alpha});
  if (full == shape) return gradients.add(i, std::move(product));
  gradients.add(i, sum_to(product, shape));
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, float alpha) {
  Backend& device = enter("matmul", a);
  check_same_device("matmul", a, b);
  check_stored("matmul", "a", a);
  check_stored("matmul", "b", b);
  require(a.rank() >= 2 && b.rank() >= 2 && a.dim(-1) == b.dim(-2), "ERR_SHAPE",
          "matmul: expected [..., M, K] and [..., K, N], got ", a.shape(), " and ", b.shape());
  const Shape batch = broadcast_shapes("matmul", batch_of(a), batch_of(b));
  require(batch.rank() <= 2, "ERR_SHAPE", "matmul: expected at most two leading axes, got ", a.shape(),
          " and ", b.shape());
  const Tensor left = broadcast_batch(a, batch), right = broadcast_batch(b, batch);
  const DType dtype = compute_dtype(device, a);
  const Tensor out = device.empty(with_matrix(batch, a.dim(-2), b.dim(-1)), dtype);
  device.matmul(out, left, right, {}, {.alpha = alpha});
  observed("matmul", out, a, b);
  if (!tracked(a, b)) return out;
  const Tensor saved_left = tracked(b) ? left : Tensor(), saved_right = tracked(a) ? right : Tensor();
  auto gradient = [saved_left, saved_right, a_shape = a.shape(), b_shape = b.shape(), alpha,
                   dtype](Gradients& gradients) {
    const Tensor dy = gradients.output();
    if (gradients.wanted(0))
      add_product(0, a_shape, dy, saved_right.transpose(-1, -2), alpha, dtype, gradients);
    if (gradients.wanted(1))
      add_product(1, b_shape, saved_left.transpose(-1, -2), dy, alpha, dtype, gradients);
  };
  return recorded("matmul", out, {a, b}, std::move(gradient));
}

Tensor as_rows(const Tensor& x) {
  if (x.rank() == 2) return x;
  const Shape rows{x.dim(-1) ? x.numel() / x.dim(-1) : x.numel(), x.dim(-1)};
  return x.can_view(rows) ? x.view(rows) : packed(x).view(rows);
}

Shape check_linear(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_activation(op, x);
  check_same_device(op, x, weight);
  check_stored(op, "weight", weight);
  require(x.rank() >= 1 && weight.rank() == 2 && x.dim(-1) == weight.dim(1), "ERR_SHAPE", op,
          ": expected x [..., Din] and weight [Dout, Din], got ", x.shape(), " and ", weight.shape());
  check_vector(op, "bias", x, bias, weight.dim(0));
  Shape shape = x.shape();
  shape[-1] = weight.dim(0);
  return shape;
}

void add_linear_gradient(const Tensor& dy, const Tensor& rows, const Tensor& weight, const Shape& x_shape,
                         Gradients& gradients) {
  Backend& device = backend_of(dy);
  const Tensor dy_rows = as_rows(dy);
  if (gradients.wanted(0)) {
    Tensor dx = device.empty(x_shape, dy.dtype());
    device.matmul(as_rows(dx), dy_rows, weight, {}, {});
    gradients.add(0, std::move(dx));
  }
  if (gradients.wanted(1))
    add_product(1, weight.shape(), dy_rows.transpose(0, 1), rows, 1, DType::f32, gradients);
  if (gradients.wanted(2)) gradients.add(2, sum(dy_rows, {0}));
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  Backend& device = enter("linear", x);
  const Tensor out = device.empty(check_linear("linear", x, weight, bias), x.dtype());
  const Tensor rows = as_rows(x);
  device.matmul(as_rows(out), rows, weight.transpose(0, 1), bias, {});
  observed("linear", out, x);
  if (!tracked(x, weight, bias)) return out;
  // Only the gradient of the weight reads x; a frozen weight lets it go.
  auto gradient = [rows = tracked(weight) ? rows : Tensor(), weight,
                   shape = x.shape()](Gradients& gradients) {
    add_linear_gradient(gradients.output(), rows, weight, shape, gradients);
  };
  return recorded("linear", out, {x, weight, bias}, std::move(gradient));
}

}  // namespace danceflux::ops
