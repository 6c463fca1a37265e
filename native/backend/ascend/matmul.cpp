// matmul. M, N, K matrix sizes.
#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {
namespace {

/// Without the batch axes along which it only repeats: the operator broadcasts by itself.
Tensor unbatched(const Tensor& x) {
  Tensor narrow = x;
  for (int axis = 0; axis < x.rank() - 2; ++axis) {
    if (x.dim(axis) > 1 && x.strides()[axis] == 0) narrow = narrow.narrow(axis, 0, 1);
  }
  return narrow;
}

}  // namespace

/// out = a @ b + bias, all of one dtype; `out` dense. A transposed factor is a view: the operators take it.
void AscendBackend::product(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias,
                            float alpha, std::int8_t cube) {
  if (bias && out.rank() == 2) {
    launch_("matmul", ops().aclnnAddmm, bias, a, b, F32{1}, F32{alpha}, out, cube);
    return;
  }
  if (out.rank() == 2) {
    launch_("matmul", ops().aclnnMm, a, b, out, cube);
  } else {
    Tensor left = unbatched(a), right = unbatched(b);
    for (int axis = 0; axis < out.rank() - 2; ++axis) {  // both repeat: one of them must show it
      if (left.dim(axis) < out.dim(axis) && right.dim(axis) < out.dim(axis)) left = a;
    }
    launch_("matmul", ops().aclnnMatmul, left, right, out, cube);
  }
  if (alpha != 1) launch_("matmul", ops().aclnnMuls, out, F32{alpha}, out);
  if (bias) launch_("matmul", ops().aclnnAdd, out, bias, F32{1}, out);
}

// Factors of different dtypes are widened to f32: the operators refuse a mixture, and narrowing would lose
// bits. A gradient in f32 of bf16 factors is made in f32 too; HF32 keeps all bits of such factors.
void AscendBackend::matmul(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias,
                           const MatmulArgs& args) {
  if (out.numel() == 0) return;
  if (a.dim(-1) == 0) {
    if (args.accumulate) return;
    if (bias) return copy(out, bias.expand(out.shape()));
    return fill(out, 0);
  }
  const bool exact = a.dtype() == DType::bf16 && b.dtype() == DType::bf16;
  // What follows the product would round it twice.
  const bool more = args.accumulate || args.alpha != 1 || (bias && out.rank() > 2);
  const DType dtype = more ? DType::f32 : common(common(a.dtype(), b.dtype()), out.dtype());
  const auto math = dtype == DType::f32 ? cube(exact) : std::int8_t{kKeepDtype};
  const Tensor left = as(a, dtype), right = as(b, dtype), shift = as(bias, dtype);
  if (!args.accumulate) {
    const Result result(*this, out, dtype);
    product(result.tensor(), left, right, shift, args.alpha, math);
    return result.finish();
  }
  if (out.rank() == 2 && out.dtype() == DType::f32 && out.is_contiguous() && !bias) {
    launch_("matmul", ops().aclnnInplaceAddmm, out, left, right, F32{1}, F32{args.alpha}, math);
    return;
  }
  const Tensor term = empty(out.shape());
  product(term, left, right, shift, args.alpha, math);
  binary(BinaryOp::add, out, out, term, 1);
}

}  // namespace danceflux::ascend
