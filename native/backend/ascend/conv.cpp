// Convolution of images. The operators ask that the axes of images and windows be named (NCHW).
#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {
namespace {

const IntList kOnes{1, 1}, kZeros{0, 0};

/// Images are padded by the operator where both sides of an axis are alike, and before it otherwise: the
/// order in which four paddings are told is not the same in all operators.
bool is_even(const ConvArgs& args) {
  return args.pad_top == args.pad_bottom && args.pad_left == args.pad_right;
}
IntList padding_of(const ConvArgs& args) {
  return is_even(args) ? IntList{args.pad_top, args.pad_left} : kZeros;
}
IntList strides_of(const ConvArgs& args) { return {args.stride, args.stride}; }

Shape padded_shape(const Shape& x, const ConvArgs& args) {
  return {x[0], x[1], x[2] + args.pad_top + args.pad_bottom, x[3] + args.pad_left + args.pad_right};
}

/// The image within its padding.
Tensor inside(const Tensor& padded, const Shape& x, const ConvArgs& args) {
  return padded.narrow(2, args.pad_top, x[2]).narrow(3, args.pad_left, x[3]);
}

}  // namespace

Tensor AscendBackend::padded(const Tensor& x, const ConvArgs& args) {
  if (is_even(args)) return dense(x);
  const Tensor whole = filled(padded_shape(x.shape(), args), 0, x.dtype());
  copy(inside(whole, x.shape(), args), x);
  return whole;
}

void AscendBackend::conv2d(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                           const ConvArgs& args) {
  if (out.numel() == 0) return;
  const DType dtype = common(common(x.dtype(), weight.dtype()), out.dtype());
  const Result result(*this, out, dtype);
  const Tensor image = padded(as(x, dtype), args), window = dense(weight, dtype), shift = dense(bias, dtype);
  launch_("conv2d", ops().aclnnConvolution, Nchw{image}, Nchw{window}, shift, strides_of(args),
          padding_of(args), kOnes, false, kZeros, 1, Nchw{result.tensor()},
          cube(x.dtype() == DType::bf16 && weight.dtype() == DType::bf16));
  result.finish();
}

// What is not asked for is not read: the image, or the window, is there for its shape.
void AscendBackend::conv2d_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                                         const ConvArgs& args) {
  if (dx.numel() == 0) return;
  const DType dtype = common(common(dx.dtype(), weight.dtype()), dy.dtype());
  const Result result(*this, dx, dtype);
  const bool even = is_even(args);
  const Tensor whole = even ? result.tensor() : empty(padded_shape(dx.shape(), args), dtype);
  const Tensor image = filled(whole.shape(), 0, dtype), slope = dense(dy, dtype),
               window = dense(weight, dtype);
  launch_("conv2d_backward_data", ops().aclnnConvolutionBackward, Nchw{slope}, Nchw{image}, Nchw{window},
          IntList{weight.dim(0)}, strides_of(args), padding_of(args), kOnes, false, kZeros, 1,
          BoolList{true, false, false}, cube(dy.dtype() == DType::bf16 && weight.dtype() == DType::bf16),
          Nchw{whole}, nullptr, nullptr);
  if (!even) copy(result.tensor(), inside(whole, dx.shape(), args));
  result.finish();
}

void AscendBackend::conv2d_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                                           const Tensor& x, const ConvArgs& args) {
  if (dweight.numel() == 0 || dy.numel() == 0) {
    if (dweight.numel() > 0) fill(dweight, 0);
    if (dbias && dbias.numel() > 0) fill(dbias, 0);
    return;
  }
  const Result result(*this, dweight, DType::f32);
  const Tensor image = padded(as(x, DType::f32), args), slope = dense(dy, DType::f32);
  const Tensor window = filled(dweight.shape(), 0);
  launch_("conv2d_backward_weight", ops().aclnnConvolutionBackward, Nchw{slope}, Nchw{image}, Nchw{window},
          IntList{dweight.dim(0)}, strides_of(args), padding_of(args), kOnes, false, kZeros, 1,
          BoolList{false, true, dbias.defined()}, cube(dy.dtype() == DType::bf16 && x.dtype() == DType::bf16),
          nullptr, Nchw{result.tensor()}, dbias);
  result.finish();
}

}  // namespace danceflux::ascend
