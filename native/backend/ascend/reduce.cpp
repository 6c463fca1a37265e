// reduce, softmax and its gradient.
#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {

void AscendBackend::reduce(ReduceOp op, const Tensor& out, const Tensor& x) {
  if (out.numel() == 0) return;
  if (x.numel() == 0) return fill(out, 0);  // only sums come here
  IntList axes;
  for (int axis = 0; axis < x.rank(); ++axis) {
    if (x.dim(axis) != 1) axes.push_back(axis);
  }
  std::erase_if(axes, [&](std::int64_t axis) { return out.dim(static_cast<int>(axis)) != 1; });
  Tensor terms = x;
  if (op == ReduceOp::sum_of_squares) {
    const Tensor wide = as(x, DType::f32);
    terms = empty(x.shape());
    launch_("reduce", ops().aclnnMul, wide, wide, terms);
  }
  if (axes.empty()) return copy(out, terms);  // no axes would mean all of them
  const Result result(*this, out, op == ReduceOp::max ? x.dtype() : DType::f32);
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::sum_of_squares:
      launch_("reduce", ops().aclnnReduceSum, terms, axes, true, kAclFloat, result.tensor());
      break;
    case ReduceOp::mean:
      launch_("reduce", ops().aclnnMean, terms, axes, true, kAclFloat, result.tensor());
      break;
    case ReduceOp::max:
      launch_("reduce", ops().aclnnAmax, terms, axes, true, result.tensor());
      break;
  }
  result.finish();
}

// Not aclnnSoftmax, which makes NaN of a row of -inf where the contract wants zeros. Where attention has a
// kernel this does not run.
void AscendBackend::softmax(const Tensor& out, const Tensor& x) {
  if (out.numel() == 0) return;
  constexpr float kLowest = -1e38f, kSmallest = 1e-38f;
  const Result result(*this, out, DType::f32);
  const Tensor &y = result.tensor(), wide = as(x, DType::f32);
  Shape row = x.shape();
  row[-1] = 1;
  const Tensor factor = empty(row);
  const IntList last{x.rank() - 1};
  launch_("softmax", ops().aclnnAmax, wide, last, true, factor);
  launch_("softmax", ops().aclnnClamp, factor, F32{kLowest}, F32{-kLowest}, factor);
  launch_("softmax", ops().aclnnSub, wide, factor, F32{1}, y);
  launch_("softmax", ops().aclnnExp, y, y);
  launch_("softmax", ops().aclnnReduceSum, y, last, true, kAclFloat, factor);
  launch_("softmax", ops().aclnnClamp, factor, F32{kSmallest}, F32{-kLowest}, factor);
  launch_("softmax", ops().aclnnDiv, y, factor, y);
  result.finish();
}

void AscendBackend::softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy) {
  if (dx.numel() == 0) return;
  const DType dtype = common(common(dx.dtype(), y.dtype()), dy.dtype());
  const Result result(*this, dx, dtype);
  launch_("softmax_backward", ops().aclnnSoftmaxBackward, as(dy, dtype), as(y, dtype), -1, result.tensor());
  result.finish();
}

}  // namespace danceflux::ascend
