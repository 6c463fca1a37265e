#include "ascend_double/ops/elementwise.h"
#include "ascend_double/ops/gemm.h"
#include "ascend_double/ops/precision.h"

namespace ascend_double {
namespace {

struct Product {
  Operand a, b, out;  // [..., M, K], [..., K, N], [..., M, N]
  Operand added;      // beta * added, broadcast to out; may be undefined
  float alpha = 1, beta = 1;
  Precision precision;
  bool deterministic = false;
};

// Strides of the matrix that `at` leads to in a broadcast of batches.
std::int64_t batch_offset(const Operand& operand, const Dims& batch, std::int64_t at) {
  std::int64_t offset = 0;
  const int own = operand.rank() - 2;
  for (std::size_t axis = batch.size(); axis-- > 0;) {
    const std::int64_t index = at % batch[axis];
    at /= batch[axis];
    const int mine = static_cast<int>(axis) - (static_cast<int>(batch.size()) - own);
    if (mine >= 0 && operand.shape[static_cast<std::size_t>(mine)] != 1) {
      std::int64_t stride = 1;  // of the gathered, contiguous values
      for (int i = mine + 1; i < operand.rank(); ++i) stride *= operand.shape[static_cast<std::size_t>(i)];
      offset += index * stride;
    }
  }
  return offset;
}

/// The matrices of an operand in memory, read the way they lie: gathering a transposed view along its rows is
/// slow.
struct Matrices {
  Dense<float> values;
  std::int64_t row, column;
  const float* at(std::int64_t offset) const { return values.data() + offset; }
};

Matrices matrices(const Launch& launch, const Operand& operand, Precision precision) {
  const std::size_t last = operand.shape.size() - 1;
  const bool lies_transposed = operand.strides[last] != 1 && operand.strides[last - 1] == 1;
  Operand view = operand;
  if (lies_transposed) {
    std::swap(view.shape[last], view.shape[last - 1]);
    std::swap(view.strides[last], view.strides[last - 1]);
  }
  Dense<float> values = narrowed(load<float>(launch, view), precision);
  const std::int64_t step = view.shape[last];
  return {std::move(values), lies_transposed ? 1 : step, lies_transposed ? step : 1};
}

void multiply(const Launch& launch, const Product& p) {
  const std::int64_t m = p.out.size(-2), n = p.out.size(-1), k = p.a.size(-1);
  const Dims batch(p.out.shape.begin(), p.out.shape.end() - 2);
  const Matrices left = matrices(launch, p.a, p.precision), right = matrices(launch, p.b, p.precision);
  Dense<float> c(p.out.count());
  const KOrder order{k_shift(), p.deterministic ? 0 : launch.chance | 1};
  for (std::int64_t at = 0; at < count_of(batch); ++at)
    gemm(m, n, k, {left.at(batch_offset(p.a, batch, at)), left.row, left.column},
         {right.at(batch_offset(p.b, batch, at)), right.row, right.column}, c.data() + at * m * n, false,
         order);
  if (p.added) {
    const Dense<float> more = load_broadcast<float>(launch, p.added, p.out.shape);
    for (std::int64_t i = 0; i < c.count(); ++i) c[i] = p.alpha * c[i] + p.beta * more[i];
  } else if (p.alpha != 1) {
    for (std::int64_t i = 0; i < c.count(); ++i) c[i] *= p.alpha;
  }
  store(launch, p.out, c);
}

void finish(Plan& plan, Product product, int cube_math_type) {
  plan.require_type(product.b, "mat2", product.a.dtype);
  product.precision = precision_of(plan, cube_math_type, product.a.dtype);
  product.deterministic = plan.deterministic;
  plan.require(product.a.size(-1) == product.b.size(-2), "inner sizes: %s times %s",
               text_of(product.a.shape).c_str(), text_of(product.b.shape).c_str());
  plan.require(product.out.dtype == product.a.dtype || product.out.dtype == ACL_FLOAT, "out: %s from %s",
               name_of(product.out.dtype), name_of(product.a.dtype));
  plan.workspace = 16 * 1024;
  plan.compute = [=](const Launch& launch) {
    if (product.out.count()) multiply(launch, product);
  };
}

Dims batch_of(const Operand& operand) { return Dims(operand.shape.begin(), operand.shape.end() - 2); }

// Vectors become matrices, as in torch.matmul.
void as_matrix(Operand& operand, bool row) {
  if (operand.rank() != 1) return;
  operand.shape.insert(row ? operand.shape.begin() : operand.shape.end(), 1);
  operand.strides.insert(row ? operand.strides.begin() : operand.strides.end(), 0);
}

void plan_matmul(Plan& plan, Tensor x, Tensor y, Tensor z, int cube_math_type, int least_rank,
                 int most_rank) {
  Product product;
  product.a = plan.in(x, "self", kFloats, least_rank, most_rank);
  product.b = plan.in(y, "mat2", kFloats, least_rank, most_rank);
  product.out = plan.out(z, "out", kFloats);
  const bool row = product.a.rank() == 1, column = product.b.rank() == 1;
  as_matrix(product.a, true);
  as_matrix(product.b, false);
  Operand a = product.a, b = product.b;
  a.shape = batch_of(product.a);
  b.shape = batch_of(product.b);
  Dims shape = broadcast(plan, {a, b});
  if (!row) shape.push_back(product.a.size(-2));
  if (!column) shape.push_back(product.b.size(-1));
  plan.require_shape(product.out, "out", shape);
  const auto restore = [&](bool dropped, std::ptrdiff_t from_end) {
    if (!dropped) return;
    product.out.shape.insert(product.out.shape.end() - from_end, 1);
    product.out.strides.insert(product.out.strides.end() - from_end, 0);
  };
  restore(column, 0);
  restore(row, 1);
  finish(plan, product, cube_math_type);
}

}  // namespace

OP(nn, Matmul, Tensor x, Tensor y, Out z, std::int8_t cube) { plan_matmul(plan, x, y, z, cube, 1, 6); }
OP(nn, Mm, Tensor x, Tensor y, Out z, std::int8_t cube) { plan_matmul(plan, x, y, z, cube, 2, 2); }
OP(nn, BatchMatMul, Tensor x, Tensor y, Out z, std::int8_t cube) { plan_matmul(plan, x, y, z, cube, 3, 3); }

OP(nn, Mv, Tensor x, Tensor y, Out z, std::int8_t cube) {
  plan.require(x && x->shape.size() == 2 && y && y->shape.size() == 1, "expected a matrix and a vector");
  plan_matmul(plan, x, y, z, cube, 1, 2);
}

OP(nn, Dot, Tensor x, Tensor y, Out z) {
  const Operand a = plan.in(x, "self", kFloats, 1, 1), b = plan.in(y, "tensor", kFloats, 1, 1);
  const Operand out = plan.out(z, "out", kFloats, 0, 0);
  plan.require_shape(b, "tensor", a.shape);
  plan.compute = [=](const Launch& launch) {
    Dense<float> products(a.count());
    const Dense<float> u = load<float>(launch, a), v = load<float>(launch, b);
    for (std::int64_t i = 0; i < a.count(); ++i) products[i] = u[i] * v[i];
    const float total = sum(products.data(), a.count());
    store(launch, out, &total);
  };
}

static void plan_addmm(Plan& plan, Tensor added, Tensor x, Tensor y, Scalar beta, Scalar alpha, Tensor z,
                       int cube, int rank) {
  Product product;
  product.added = plan.in(added, "self", kFloats);
  product.a = plan.in(x, "mat1", kFloats, rank, rank);
  product.b = plan.in(y, "mat2", kFloats, rank, rank);
  product.beta = static_cast<float>(plan.scalar(beta, "beta").real);
  product.alpha = static_cast<float>(plan.scalar(alpha, "alpha").real);
  product.out = plan.out(z, "out", kFloats, rank, rank);
  Dims shape = batch_of(product.a);
  plan.require(rank == 2 || product.a.size(0) == product.b.size(0), "batches of different sizes");
  shape.push_back(product.a.size(-2));
  shape.push_back(product.b.size(-1));
  plan.require_shape(product.out, "out", shape);
  plan.require(broadcast(plan, {product.out, product.added}) == shape, "self %s does not broadcast to %s",
               text_of(product.added.shape).c_str(), text_of(shape).c_str());
  plan.require(product.added.dtype == product.a.dtype || product.added.dtype == ACL_FLOAT, "self: %s with %s",
               name_of(product.added.dtype), name_of(product.a.dtype));
  finish(plan, product, cube);
}
OP(nn, Addmm, Tensor added, Tensor x, Tensor y, Scalar beta, Scalar alpha, Out z, std::int8_t cube) {
  plan_addmm(plan, added, x, y, beta, alpha, z, cube, 2);
}
OP(nn, InplaceAddmm, Out self, Tensor x, Tensor y, Scalar beta, Scalar alpha, std::int8_t cube) {
  plan_addmm(plan, self, x, y, beta, alpha, self, cube, 2);
}
OP(nn, Baddbmm, Tensor added, Tensor x, Tensor y, Scalar beta, Scalar alpha, Out z, std::int8_t cube) {
  plan_addmm(plan, added, x, y, beta, alpha, z, cube, 3);
}
OP(nn, InplaceBaddbmm, Out self, Tensor x, Tensor y, Scalar beta, Scalar alpha, std::int8_t cube) {
  plan_addmm(plan, self, x, y, beta, alpha, self, cube, 3);
}

// op(A) op(B) alpha + C beta; a flag other than 0 transposes.
OP(nn, Gemm, Tensor x, Tensor y, Tensor z, float alpha, float beta, std::int64_t transpose_a,
   std::int64_t transpose_b, Out out, std::int8_t cube) {
  Product product;
  product.a = plan.in(x, "A", kFloats, 2, 2);
  product.b = plan.in(y, "B", kFloats, 2, 2);
  product.added = plan.in(z, "C", kFloats);
  product.alpha = alpha;
  product.beta = beta;
  product.out = plan.out(out, "out", kFloats, 2, 2);
  const auto transpose = [](Operand& operand) {
    std::swap(operand.shape[0], operand.shape[1]);
    std::swap(operand.strides[0], operand.strides[1]);
  };
  if (transpose_a) transpose(product.a);
  if (transpose_b) transpose(product.b);
  plan.require_shape(product.out, "out", {product.a.size(0), product.b.size(1)});
  finish(plan, product, cube);
}

}  // namespace ascend_double
