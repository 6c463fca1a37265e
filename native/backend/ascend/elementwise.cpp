// copy, fill, unary and binary.
#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {
namespace {

constexpr double kQuickGeluBeta = 1.702;

constexpr const char* kUnaryNames[] = {"affine", "clamp",     "exp",        "log",       "sqrt",
                                       "rsqrt",  "square",    "reciprocal", "tanh",      "sigmoid",
                                       "silu",   "gelu_tanh", "gelu_erf",   "quick_gelu"};
const char* name_of_op(UnaryOp op) { return kUnaryNames[static_cast<std::size_t>(op)]; }

/// `x` without the axes along which it only repeats, where `other` does not: operators broadcast by
/// themselves, and would copy a repeating view first.
Tensor unspread(const Tensor& x, const Tensor& other) {
  Tensor narrow = x;
  for (int axis = 0; axis < x.rank(); ++axis) {
    if (x.dim(axis) > 1 && x.strides()[axis] == 0 && other.strides()[axis] != 0)
      narrow = narrow.narrow(axis, 0, 1);
  }
  return narrow;
}

/// Its gradient is one operator that rounds once.
bool has_kernel_backward(UnaryOp op) {
  return op == UnaryOp::affine || op == UnaryOp::log || op == UnaryOp::silu || op == UnaryOp::gelu_tanh ||
         op == UnaryOp::gelu_erf || op == UnaryOp::quick_gelu;
}

}  // namespace

void AscendBackend::copy(const Tensor& out, const Tensor& x) {
  if (out.numel() > 0) launch_("copy", ops().aclnnInplaceCopy, out, x);
}

void AscendBackend::fill(const Tensor& out, float value) {
  if (out.numel() > 0) launch_("fill", ops().aclnnInplaceFillScalar, out, F32{value});
}

void AscendBackend::unary(UnaryOp op, const Tensor& out, const Tensor& x, float a, float b) {
  if (out.numel() == 0) return;
  const char* const name = name_of_op(op);
  const bool two_steps = op == UnaryOp::affine && a != 1 && b != 0;
  const Result result(*this, out, two_steps ? DType::f32 : out.dtype());
  const Tensor& y = result.tensor();
  switch (op) {
    case UnaryOp::affine:
      if (a != 1) launch_(name, ops().aclnnMuls, as(x, y.dtype()), F32{a}, y);
      if (a == 1 || b != 0) launch_(name, ops().aclnnAdds, a == 1 ? x : y, F32{b}, F32{1}, y);
      break;
    case UnaryOp::clamp:
      launch_(name, ops().aclnnClamp, x, F32{a}, F32{b}, y);
      break;
    case UnaryOp::exp:
      launch_(name, ops().aclnnExp, x, y);
      break;
    case UnaryOp::log:
      launch_(name, ops().aclnnLog, x, y);
      break;
    case UnaryOp::sqrt:
      launch_(name, ops().aclnnSqrt, x, y);
      break;
    case UnaryOp::rsqrt:
      launch_(name, ops().aclnnRsqrt, x, y);
      break;
    case UnaryOp::square:
      launch_(name, ops().aclnnMul, x, x, y);
      break;
    case UnaryOp::reciprocal:
      launch_(name, ops().aclnnReciprocal, x, y);
      break;
    case UnaryOp::tanh:
      launch_(name, ops().aclnnTanh, x, y);
      break;
    case UnaryOp::sigmoid:
      launch_(name, ops().aclnnSigmoid, x, y);
      break;
    case UnaryOp::silu:
      launch_(name, ops().aclnnSilu, x, y);
      break;
    case UnaryOp::gelu_tanh:  // V2, because aclnnGelu without it is one of the two and does not say which
      launch_(name, ops().aclnnGeluV2, x, kGeluTanh, y);
      break;
    case UnaryOp::gelu_erf:
      launch_(name, ops().aclnnGeluV2, x, kGeluErf, y);
      break;
    case UnaryOp::quick_gelu:
      launch_(name, ops().aclnnSwish, x, F32{kQuickGeluBeta}, y);
      break;
  }
  result.finish();
}

void AscendBackend::unary_backward(UnaryOp op, const Tensor& dx, const Tensor& x, const Tensor& dy, float a,
                                   float b) {
  if (dx.numel() == 0) return;
  const char* const name = name_of_op(op);
  const DType dtype =
      has_kernel_backward(op) ? common(common(dx.dtype(), x.dtype()), dy.dtype()) : DType::f32;
  const Result result(*this, dx, dtype);
  const Tensor& out = result.tensor();
  const Tensor input = as(x, dtype), slope = as(dy, dtype);
  switch (op) {
    case UnaryOp::affine:
      launch_(name, ops().aclnnMuls, slope, F32{a}, out);
      break;
    case UnaryOp::log:
      launch_(name, ops().aclnnDiv, slope, input, out);
      break;
    case UnaryOp::silu:
      launch_(name, ops().aclnnSiluBackward, slope, input, out);
      break;
    case UnaryOp::gelu_tanh:  // a text here, a number in the forward operator
      launch_(name, ops().aclnnGeluBackwardV2, slope, input, "tanh", out);
      break;
    case UnaryOp::gelu_erf:
      launch_(name, ops().aclnnGeluBackwardV2, slope, input, "none", out);
      break;
    case UnaryOp::quick_gelu:
      launch_(name, ops().aclnnSwishBackward, slope, input, F32{kQuickGeluBeta}, out);
      break;
    default:
      unary_wide(op, out, input, slope, a, b);
  }
  result.finish();
}

/// Gradients of several operators, in f32. `dx` may be `dy`.
void AscendBackend::unary_wide(UnaryOp op, const Tensor& dx, const Tensor& x, const Tensor& dy, float a,
                               float b) {
  const char* const name = name_of_op(op);
  const Tensor t = empty(x.shape());
  const auto times = [&](const Tensor& factor) { launch_(name, ops().aclnnMul, dy, factor, dx); };
  const auto scaled = [&](float factor) { launch_(name, ops().aclnnMuls, dx, F32{factor}, dx); };
  switch (op) {
    case UnaryOp::clamp:
      // 1 within [a, b]: a difference below zero is, after two factors of 1e38, below -1.
      for (const bool upper : {false, true}) {
        launch_(name, ops().aclnnAdds, x, F32{upper ? -b : -a}, F32{1}, t);
        launch_(name, ops().aclnnMuls, t, F32{upper ? -1e38 : 1e38}, t);
        launch_(name, ops().aclnnMuls, t, F32{1e38}, t);
        launch_(name, ops().aclnnAdds, t, F32{1}, F32{1}, t);
        launch_(name, ops().aclnnClamp, t, F32{0}, F32{1}, t);
        launch_(name, ops().aclnnMul, upper ? dx : dy, t, dx);
      }
      return;
    case UnaryOp::exp:
      launch_(name, ops().aclnnExp, x, t);
      return times(t);
    case UnaryOp::sqrt:  // dy / 2 sqrt x
      launch_(name, ops().aclnnSqrt, x, t);
      launch_(name, ops().aclnnDiv, dy, t, dx);
      return scaled(0.5f);
    case UnaryOp::rsqrt:  // -dy / 2 x sqrt x
      launch_(name, ops().aclnnSqrt, x, t);
      launch_(name, ops().aclnnMul, t, x, t);
      launch_(name, ops().aclnnDiv, dy, t, dx);
      return scaled(-0.5f);
    case UnaryOp::square:
      times(x);
      return scaled(2);
    case UnaryOp::reciprocal:
      launch_(name, ops().aclnnMul, x, x, t);
      launch_(name, ops().aclnnDiv, dy, t, dx);
      return scaled(-1);
    case UnaryOp::tanh:
      launch_(name, ops().aclnnTanh, x, t);
      launch_(name, ops().aclnnTanhBackward, dy, t, dx);
      return;
    case UnaryOp::sigmoid:
      launch_(name, ops().aclnnSigmoid, x, t);
      launch_(name, ops().aclnnSigmoidBackward, dy, t, dx);
      return;
    default:
      fail("ERR_DEVICE", name, ": expected an op with a composed gradient, got another");
  }
}

void AscendBackend::binary(BinaryOp op, const Tensor& out, const Tensor& a, const Tensor& b, float b_scale) {
  if (out.numel() == 0) return;
  const DType dtype = common(common(a.dtype(), b.dtype()), out.dtype());
  const Result result(*this, out, dtype);
  const Tensor& y = result.tensor();
  const Tensor left = as(unspread(a, b), dtype), right = as(unspread(b, a), dtype);
  switch (op) {
    case BinaryOp::add:
      launch_("add", ops().aclnnAdd, left, right, F32{b_scale}, y);
      break;
    case BinaryOp::sub:
      launch_("sub", ops().aclnnSub, left, right, F32{1}, y);
      break;
    case BinaryOp::mul:
      launch_("mul", ops().aclnnMul, left, right, y);
      break;
    case BinaryOp::div:
      launch_("div", ops().aclnnDiv, left, right, y);
      break;
    case BinaryOp::max:
      launch_("max", ops().aclnnMaximum, left, right, y);
      break;
    case BinaryOp::min:
      launch_("min", ops().aclnnMinimum, left, right, y);
      break;
  }
  result.finish();
}

}  // namespace danceflux::ascend
