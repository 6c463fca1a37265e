// One element at a time, and two at a time with broadcasting.
#include "ops/check.h"
#include "ops/ops.h"

namespace danceflux::ops {
namespace {

Tensor apply(UnaryOp op, const Tensor& x, float a = 1, float b = 0) {
  const Tensor out = like(x);
  backend_of(x).unary(op, out, x, a, b);
  return out;
}

Tensor apply(BinaryOp op, const Tensor& a, const Tensor& b) {
  const Tensor out = backend_of(a).empty(a.shape(), a.dtype());
  backend_of(a).binary(op, out, a, b, 1);
  return out;
}

/// 1 where a > b, 1/2 where they are equal, 0 elsewhere. No finite difference is so small that two factors of
/// 1e38 leave it below one.
Tensor greater_mask(const Tensor& a, const Tensor& b) {
  const Tensor mask = apply(BinaryOp::sub, a, b);
  Backend& device = backend_of(a);
  device.unary(UnaryOp::affine, mask, mask, 1e38f, 0);
  device.unary(UnaryOp::affine, mask, mask, 1e38f, 0.5f);
  device.unary(UnaryOp::clamp, mask, mask, 0, 1);
  return mask;
}

/// What each rule below sees: inputs broadcast to one shape (undefined where the rule needs none), and their
/// own shapes.
struct BinarySaved {
  Tensor a, b;
  Shape a_shape, b_shape;
  float b_scale;
};

using BinaryRule = void (*)(const BinarySaved& saved, Gradients& gradients);

void add_gradient(const BinarySaved& saved, Gradients& gradients) {
  if (gradients.wanted(0)) gradients.add(0, sum_to(gradients.output(), saved.a_shape));
  if (!gradients.wanted(1)) return;
  Tensor db = sum_to(gradients.output(), saved.b_shape);  // first smaller, then scaled
  gradients.add(1, saved.b_scale == 1 ? std::move(db) : apply(UnaryOp::affine, db, saved.b_scale));
}

void mul_gradient(const BinarySaved& saved, Gradients& gradients) {
  const Tensor dy = gradients.output();
  if (gradients.wanted(0)) gradients.add(0, sum_to(apply(BinaryOp::mul, dy, saved.b), saved.a_shape));
  if (gradients.wanted(1)) gradients.add(1, sum_to(apply(BinaryOp::mul, dy, saved.a), saved.b_shape));
}

void div_gradient(const BinarySaved& saved, Gradients& gradients) {
  const Tensor da = apply(BinaryOp::div, gradients.output(), saved.b);
  if (gradients.wanted(1)) {
    const Tensor quotient = apply(BinaryOp::div, saved.a, saved.b);
    backend_of(da).binary(BinaryOp::mul, quotient, quotient, da, 1);
    gradients.add(1, apply(UnaryOp::affine, sum_to(quotient, saved.b_shape), -1));
  }
  if (gradients.wanted(0)) gradients.add(0, sum_to(da, saved.a_shape));
}

/// The greater takes all; equal ones share.
void max_gradient(const BinarySaved& saved, Gradients& gradients) {
  const Tensor dy = gradients.output();
  if (gradients.wanted(0)) {
    gradients.add(0, sum_to(apply(BinaryOp::mul, dy, greater_mask(saved.a, saved.b)), saved.a_shape));
  }
  if (gradients.wanted(1)) {
    gradients.add(1, sum_to(apply(BinaryOp::mul, dy, greater_mask(saved.b, saved.a)), saved.b_shape));
  }
}

void min_gradient(const BinarySaved& saved, Gradients& gradients) {
  const BinarySaved negated{saved.a ? apply(UnaryOp::affine, saved.a, -1) : Tensor(),
                            saved.b ? apply(UnaryOp::affine, saved.b, -1) : Tensor(), saved.a_shape,
                            saved.b_shape, 1};
  max_gradient(negated, gradients);
}

struct BinaryRow {
  const char* name;
  bool saves_inputs;
  BinaryRule rule;
};

/// In the order of BinaryOp. A difference is a sum with b_scale -1.
constexpr BinaryRow kBinary[] = {{"add", false, add_gradient}, {"sub", false, add_gradient},
                                 {"mul", true, mul_gradient},  {"div", true, div_gradient},
                                 {"max", true, max_gradient},  {"min", true, min_gradient}};

constexpr const char* kUnaryNames[] = {"affine", "clamp",     "exp",        "log",       "sqrt",
                                       "rsqrt",  "square",    "reciprocal", "tanh",      "sigmoid",
                                       "silu",   "gelu_tanh", "gelu_erf",   "quick_gelu"};

}  // namespace

Tensor unary(UnaryOp op, const Tensor& x, float a, float b) {
  const char* name = kUnaryNames[static_cast<std::size_t>(op)];
  enter(name, x);
  check_activation(name, x);
  const Tensor out = apply(op, x, a, b);
  observed(name, out, x);
  if (!tracked(x)) return out;
  if (op == UnaryOp::affine) {
    return recorded(name, out, {x}, [a](Gradients& gradients) {
      gradients.add(0, apply(UnaryOp::affine, gradients.output(), a));
    });
  }
  return recorded(name, out, {x}, [op, x, a, b](Gradients& gradients) {
    Tensor dx = gradients.place(0, x);
    backend_of(x).unary_backward(op, dx, x, gradients.output(), a, b);
    gradients.add(0, std::move(dx));
  });
}

Tensor binary(BinaryOp op, const Tensor& a, const Tensor& b, float b_scale) {
  const BinaryRow& row = kBinary[static_cast<std::size_t>(op)];
  Backend& device = enter(row.name, a);
  check_activation(row.name, a);
  check_beside(row.name, a, b);
  const bool same = a.shape() == b.shape();
  const Shape shape = same ? a.shape() : broadcast_shapes(row.name, a.shape(), b.shape());
  const Tensor left = same ? a : a.expand(shape), right = same ? b : b.expand(shape);
  const Tensor out = device.empty(shape, a.dtype());
  device.binary(op, out, left, right, b_scale);
  observed(row.name, out, a, b);
  if (!tracked(a, b)) return out;
  BinarySaved saved{{}, {}, a.shape(), b.shape(), op == BinaryOp::sub ? -1 : b_scale};
  const bool product = op == BinaryOp::mul;  // whose gradient for one factor needs the other only
  if (row.saves_inputs && (!product || tracked(b))) saved.a = left;
  if (row.saves_inputs && (!product || tracked(a))) saved.b = right;
  return recorded(row.name, out, {a, b},
                  [saved, rule = row.rule](Gradients& gradients) { rule(saved, gradients); });
}

}  // namespace danceflux::ops
