// Products of matrices in row-major terms, and how they become cuBLASLt's. M, N, K matrix sizes.
//
// Row-major out [M, N] is column-major [N, M]: cuBLASLt's first operand is our b, its second our a, its m our
// N and its n our M, the number of rows.
#include <algorithm>
#include <numeric>

#include "backend/cuda/blas.h"
#include "backend/cuda/layout.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

/// A matrix as cuBLASLt can read it: `step` elements from one dense line to the next.
struct Lines {
  bool readable = false, by_columns = false;  // by_columns: a line is a column of the row-major matrix
  std::int64_t step = 0;
};

Lines lines_of(const Tensor& x) {
  // One row keeps the step that it has among many: alignment, and with it the kernel, must not hang on their
  // number.
  const std::int64_t rows = x.dim(-2), columns = x.dim(-1), down = x.strides()[-2], across = x.strides()[-1];
  if ((columns == 1 || across == 1) && (rows == 1 || down >= columns))
    return {true, false, std::max(columns, down)};
  if ((rows == 1 || down == 1) && (columns == 1 || across >= rows))
    return {true, true, std::max(rows, across)};
  return {};
}

/// What pointers to lines are sure to be aligned to, whichever line they begin at: so that the kernel does
/// not depend on where in a batch a matrix lies.
std::int64_t alignment_of(const Tensor& x, std::int64_t step) {
  std::int64_t bytes = std::gcd<std::int64_t>(16, step * static_cast<std::int64_t>(size_of(x.dtype())));
  for (int axis = 0; axis < x.rank() - 2; ++axis)
    bytes = std::gcd(bytes, x.strides()[axis] * static_cast<std::int64_t>(size_of(x.dtype())));
  return bytes;
}
bool keeps(const Tensor& x, std::int64_t alignment) {
  return reinterpret_cast<std::uintptr_t>(x.address()) % static_cast<std::uintptr_t>(alignment) == 0;
}

/// The dtype that both operands are multiplied in.
DType product_dtype(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (a.dtype() == DType::bf16 && b.dtype() == DType::bf16) return DType::bf16;
  return out.dtype() == DType::bf16 ? DType::bf16 : DType::f32;
}

}  // namespace

/// `x` in `dtype`, lying so that cuBLASLt can read it.
Tensor CudaBackend::as_operand(const Tensor& x, DType dtype) {
  const Lines lines = lines_of(x);
  if (x.dtype() == dtype && lines.readable && keeps(x, alignment_of(x, lines.step))) return x;
  // A broadcast batch axis stays one matrix.
  Tensor once = x;
  for (int axis = 0; axis < x.rank() - 2; ++axis)
    if (x.strides()[axis] == 0 && x.dim(axis) > 1) once = once.narrow(axis, 0, 1);
  const bool by_columns = lines.readable && lines.by_columns;
  Tensor packed;
  if (by_columns) {
    const Tensor turned = once.transpose(-1, -2);
    packed = empty(turned.shape(), dtype);
    copy(packed, turned);
    packed = packed.transpose(-1, -2);
  } else {
    packed = empty(once.shape(), dtype);
    copy(packed, once);
  }
  return packed.shape() == x.shape() ? packed : packed.expand(x.shape());
}

namespace {

struct Operand {
  Tensor tensor;
  Lines lines;
};

Product product_of(const Tensor& out, const Operand& left, const Operand& right, const Tensor& bias,
                   const MatmulArgs& args) {
  Product product;
  product.kind.m = out.dim(-1);
  product.kind.k = left.tensor.dim(-1);
  product.n = out.dim(-2);
  product.kind.a_type = right.tensor.dtype();
  product.kind.b_type = left.tensor.dtype();
  product.kind.d_type = out.dtype();
  product.kind.a_transposed = right.lines.by_columns;
  product.kind.b_transposed = left.lines.by_columns;
  product.kind.accumulate = args.accumulate;
  product.lda = right.lines.step;
  product.ldb = left.lines.step;
  product.ldd = lines_of(out).step;
  product.kind.a_alignment = alignment_of(right.tensor, product.lda);
  product.kind.b_alignment = alignment_of(left.tensor, product.ldb);
  product.kind.d_alignment = alignment_of(out, product.ldd);
  product.a = right.tensor.address();
  product.b = left.tensor.address();
  product.d = out.address();
  product.alpha = args.alpha;
  if (bias.defined()) {
    product.kind.epilogue = Epilogue::bias;
    product.bias = bias.address();
  }
  return product;
}

const void* moved(const void* address, std::int64_t elements, DType dtype) {
  return static_cast<const char*>(address) + elements * static_cast<std::int64_t>(size_of(dtype));
}

/// Over the leading axes: as many of them as one strided batch takes, the others one after the other.
bool run_batches(Blas& blas, const Product& whole, const Tensor& out, const Tensor& left,
                 const Tensor& right) {
  const Layout<3> batches = layout_of<3>({&out, &left, &right}, 0, out.rank() - 2);
  Product product = whole;
  std::int64_t outer = 1;
  product.kind.batched = out.rank() > 2;
  if (batches.rank > 0) {
    const int last = batches.rank - 1;
    product.batches = batches.size[last];
    product.d_step = batches.stride[0][last];
    product.b_step = batches.stride[1][last];
    product.a_step = batches.stride[2][last];
    outer = batches.total / product.batches;
  }
  for (std::int64_t i = 0; i < outer; ++i) {
    std::int64_t offset[3];
    batches.offsets(i * product.batches, offset);
    product.d = const_cast<void*>(moved(whole.d, offset[0], whole.kind.d_type));
    product.b = moved(whole.b, offset[1], whole.kind.b_type);
    product.a = moved(whole.a, offset[2], whole.kind.a_type);
    if (!blas.run(product)) return false;
  }
  return true;
}

}  // namespace

void CudaBackend::matmul(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias,
                         const MatmulArgs& args) {
  enter("matmul");
  if (out.numel() == 0) return;
  if (a.dim(-1) == 0) {
    if (!args.accumulate) fill(out, 0);
    if (bias.defined()) binary(BinaryOp::add, out, out, as_operand_vector(bias, out), 1);
    return;
  }
  const Lines to = lines_of(out);
  if (!to.readable || to.by_columns || !keeps(out, alignment_of(out, to.step))) {
    if (to.readable && to.by_columns && !bias.defined() && out.dim(-1) > 1)
      return matmul(out.transpose(-1, -2), b.transpose(-1, -2), a.transpose(-1, -2), bias, args);
    const Tensor whole = empty(out.shape(), out.dtype());
    if (args.accumulate) copy(whole, out);
    matmul(whole, a, b, bias, args);
    return copy(out, whole);
  }
  const DType dtype = product_dtype(out, a, b);
  const Tensor left = as_operand(a, dtype), right = as_operand(b, dtype), shift = dense(bias);
  Product product = product_of(out, {left, lines_of(left)}, {right, lines_of(right)}, shift, args);
  if (run_batches(*blas_, product, out, left, right)) return;
  Tensor rounded;
  if (shift.defined() && out.dtype() != DType::f32) {  // these types may want the bias in the result's
    rounded = empty(shift.shape(), out.dtype());
    copy(rounded, shift);
    product.bias = rounded.address();
    product.kind.bias_type = out.dtype();
    if (run_batches(*blas_, product, out, left, right)) return;
  }
  if (shift.defined()) {
    product.kind.epilogue = Epilogue::none;
    if (run_batches(*blas_, product, out, left, right))
      return binary(BinaryOp::add, out, out, as_operand_vector(shift, out), 1);
  }
  fail("ERR_CUDA", "matmul: expected cuBLASLt to have an algorithm, got none for ", name_of(dtype), " ",
       a.shape(), " @ ", b.shape(),
       options_.determinism == Determinism::strict ? " that is batch-invariant" : "");
}

/// `vector` in the dtype of `out`, seen in its shape.
Tensor CudaBackend::as_operand_vector(const Tensor& vector, const Tensor& out) {
  Tensor same = vector;
  if (vector.dtype() != out.dtype()) {
    same = empty(vector.shape(), out.dtype());
    copy(same, vector);
  }
  return same.expand(out.shape());
}

Declined CudaBackend::linear_activation(UnaryOp op, const Tensor& out, const Tensor& pre, const Tensor& x,
                                        const Tensor& weight, const Tensor& bias) {
  enter("linear_activation");
  if (out.numel() == 0) return {};
  const Tensor columns = weight.transpose(0, 1);
  // The epilogue's gelu is the tanh form. What goes into it is kept also where nothing is recorded: another
  // epilogue might be another kernel, and rollout and update must run the same one.
  const Tensor before = pre.defined() ? pre : empty(out.shape(), out.dtype());
  const Lines to = lines_of(out), kept = lines_of(before);
  const bool fits = op == UnaryOp::gelu_tanh && x.dim(-1) > 0 && !to.by_columns && to.readable &&
                    !kept.by_columns && kept.readable && kept.step % 8 == 0 &&
                    keeps(out, alignment_of(out, to.step)) && keeps(before, 16);
  if (fits) {
    const DType dtype = product_dtype(out, x, columns);
    const Tensor left = as_operand(x, dtype), right = as_operand(columns, dtype);
    Tensor shift = dense(bias);
    Product product = product_of(out, {left, lines_of(left)}, {right, lines_of(right)}, shift, {});
    product.kind.epilogue = shift.defined() ? Epilogue::gelu_bias : Epilogue::gelu;
    product.aux = before.address();
    product.aux_ld = kept.step;
    if (blas_->run(product)) return {};
    if (shift.defined() && out.dtype() != DType::f32) {
      const Tensor rounded = empty(shift.shape(), out.dtype());
      copy(rounded, shift);
      product.bias = rounded.address();
      product.kind.bias_type = out.dtype();
      if (blas_->run(product)) return {};
    }
  }
  matmul(before, x, columns, bias, {});
  unary(op, out, before, 1, 0);
  return {};
}

}  // namespace danceflux::cuda
