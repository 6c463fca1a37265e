// Matrix products of tensors: descriptions handed to gemm.
//
// M rows, N columns, K depth; up to two batch axes in front.
#include "backend/cpu/gemm.h"
#include "backend/cpu/operand.h"
#include "backend/cpu/row_kernels.h"
#include "core/error.h"

namespace danceflux::cpu {
namespace {

// Lines along `line_axis`, depth along the other of the last two axes.
Operand operand_of(const Tensor& tensor, int line_axis, int depth_axis, int batch_axes) {
  Operand operand;
  operand.panel = {tensor.address(), store_of("matmul", tensor.dtype()), tensor.strides()[line_axis],
                   tensor.strides()[depth_axis]};
  // the second entry is the axis next to the matrix
  for (int i = 0; i < std::min(batch_axes, tensor.rank() - 2); ++i)
    operand.batch_stride[1 - i] = tensor.dim(-3 - i) == 1 ? 0 : tensor.strides()[-3 - i];
  return operand;
}

}  // namespace

void CpuBackend::matmul(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias,
                        const MatmulArgs& args) {
  const int batch_axes = out.rank() - 2;
  require(batch_axes <= 2, "ERR_SHAPE", "matmul: expected at most two batch axes, got ", out.shape());
  Product p;
  p.rows = out.dim(-2), p.columns = out.dim(-1), p.depth = a.dim(-1);
  p.a = operand_of(a, -2, -1, batch_axes);
  p.b = operand_of(b, -1, -2, batch_axes);
  for (int i = 0; i < batch_axes; ++i) {
    p.batch[1 - i] = out.dim(-3 - i);
    p.c_batch[1 - i] = out.strides()[-3 - i];
  }
  p.c = out.data<float>();
  p.c_row = out.strides()[-2], p.c_column = out.strides()[-1];
  p.alpha = args.alpha;
  p.accumulate = args.accumulate;
  Tensor dense_bias = bias;
  if (bias.defined()) {
    if (bias.strides()[-1] != 1 && bias.dim(-1) > 1) {
      dense_bias = empty(bias.shape());
      copy(dense_bias, bias);
    }
    p.column_bias = dense_bias.data<float>();
  }
  multiply(p, threads_, *scratch_);
}

namespace {

struct ActivationPass {
  ElementwiseRows::Unary function;
  float* out;
  std::int64_t out_row;
};

void apply(const void* self, float* c, std::int64_t c_row, std::int64_t, std::int64_t first_row,
           std::int64_t rows, std::int64_t first_column, std::int64_t columns) {
  const auto& pass = *static_cast<const ActivationPass*>(self);
  float* out = pass.out + first_row * pass.out_row + first_column;
  for (std::int64_t row = 0; row < rows; ++row)
    pass.function(out + row * pass.out_row, c + row * c_row, columns, 1, 0);
}

}  // namespace

Declined CpuBackend::linear_activation(UnaryOp op, const Tensor& out, const Tensor& pre, const Tensor& x,
                                       const Tensor& weight, const Tensor& bias) {
  const std::int64_t depth = weight.dim(1), columns = weight.dim(0);
  const bool flat = x.is_contiguous() && out.is_contiguous() && (!pre.defined() || pre.is_contiguous());
  if (!flat) return "x, pre and out are not all contiguous";
  if (bias.defined() && !bias.is_contiguous()) return "bias is not contiguous";
  Product p;
  p.rows = columns ? out.numel() / columns : 0;
  p.columns = columns, p.depth = depth;
  p.a.panel = {x.address(), store_of("linear_activation", x.dtype()), depth, 1};
  p.b.panel = {weight.address(), store_of("linear_activation", weight.dtype()), weight.strides()[0],
               weight.strides()[1]};
  p.c = pre.defined() ? pre.data<float>() : out.data<float>();
  p.c_row = columns;
  if (bias.defined()) p.column_bias = bias.data<float>();
  const ActivationPass pass{scratch_->kernels.rows->elementwise->unary[static_cast<int>(op)],
                            out.data<float>(), columns};
  const Finish finish{apply, &pass};
  p.finish = &finish;
  multiply(p, threads_, *scratch_);
  return std::nullopt;
}

}  // namespace danceflux::cpu
