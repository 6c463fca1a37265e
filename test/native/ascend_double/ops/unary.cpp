#include "ascend_double/ops/elementwise.h"

namespace ascend_double {
namespace {

template <class Value>
Value sigmoid(Value x) {
  return 1 / (1 + std::exp(-x));
}
template <class Value>
Value gelu_tanh(Value x) {
  return Value(0.5) * x * (1 + std::tanh(Value(0.7978845608028654) * (x + Value(0.044715) * x * x * x)));
}
template <class Value>
Value gelu_erf(Value x) {
  return Value(0.5) * x * (1 + std::erf(x * Value(0.7071067811865476)));
}
template <class Value>
Value gelu_tanh_slope(Value x) {
  const Value t = std::tanh(Value(0.7978845608028654) * (x + Value(0.044715) * x * x * x));
  const Value inner = Value(0.7978845608028654) * (1 + 3 * Value(0.044715) * x * x);
  return Value(0.5) * (1 + t) + Value(0.5) * x * (1 - t * t) * inner;
}
template <class Value>
Value gelu_erf_slope(Value x) {
  return Value(0.5) * (1 + std::erf(x * Value(0.7071067811865476))) +
         x * Value(0.3989422804014327) * std::exp(Value(-0.5) * x * x);
}
template <class Value>
Value swish_slope(Value x, Value beta) {
  const Value s = sigmoid(beta * x);
  return s * (1 + beta * x * (1 - s));
}

}  // namespace

// ---- y = f(x) of one dtype, with an in-place twin
// -----------------------------------------------------------------------------
#define UNARY(library, name, types, formula)                                       \
  static void plan_both_##name(Plan& plan, Tensor x, Tensor y) {                   \
    const Operand in = plan.in(x, "self", types), out = plan.out(y, "out", types); \
    plan.require_type(out, "out", in.dtype);                                       \
    map_reals(plan, out, {in}, [](auto a) { return formula; });                    \
  }                                                                                \
  OP(library, name, Tensor x, Out y) { plan_both_##name(plan, x, y); }             \
  OP(library, Inplace##name, Out x) { plan_both_##name(plan, x, x); }

UNARY(math, Exp, kReals, std::exp(a))
UNARY(math, Log, kReals, std::log(a))
UNARY(math, Sqrt, kReals, std::sqrt(a))
UNARY(math, Rsqrt, kReals, 1 / std::sqrt(a))
UNARY(math, Cos, kReals, std::cos(a))
UNARY(math, Sin, kReals, std::sin(a))
UNARY(math, Reciprocal, kReals, 1 / a)
UNARY(math, Erf, kReals, std::erf(a))
UNARY(math, Floor, kReals, std::floor(a))
UNARY(math, Tanh, kReals, std::tanh(a))
UNARY(math, Sigmoid, kReals, sigmoid(a))

#define UNARY_NUMBER(library, name, formula)                                             \
  static void plan_both_##name(Plan& plan, Tensor x, Tensor y) {                         \
    const Operand in = plan.in(x, "self", kNumbers), out = plan.out(y, "out", kNumbers); \
    plan.require_type(out, "out", in.dtype);                                             \
    map_numbers(plan, out, {in}, [](auto a) { return formula; });                        \
  }                                                                                      \
  OP(library, name, Tensor x, Out y) { plan_both_##name(plan, x, y); }

UNARY_NUMBER(math, Neg, -a)
UNARY_NUMBER(math, Abs, a < 0 ? -a : a)
UNARY_NUMBER(nn, Relu, a > 0 ? a : decltype(a)(0))
OP(math, InplaceNeg, Out x) { plan_both_Neg(plan, x, x); }
OP(nn, InplaceRelu, Out x) { plan_both_Relu(plan, x, x); }

// ---- activations
// ---------------------------------------------------------------------------------------------------------------
#define ACTIVATION(name, formula)                                                      \
  OP(nn, name, Tensor x, Out y) {                                                      \
    const Operand in = plan.in(x, "self", kFloats), out = plan.out(y, "out", kFloats); \
    plan.require_type(out, "out", in.dtype);                                           \
    map_reals(plan, out, {in}, [](auto a) { return formula; });                        \
  }
ACTIVATION(Gelu, gelu_tanh(a))  // the tanh formula, whatever its name suggests
ACTIVATION(Silu, a* sigmoid(a))

OP(nn, GeluV2, Tensor x, std::int64_t approximate, Out y) {
  const Operand in = plan.in(x, "x", kFloats), out = plan.out(y, "y", kFloats);
  plan.require_type(out, "y", in.dtype);
  plan.require(approximate == 0 || approximate == 1, "approximate: expected 0 (erf) or 1 (tanh)");
  if (approximate)
    map_reals(plan, out, {in}, [](auto a) { return gelu_tanh(a); });
  else
    map_reals(plan, out, {in}, [](auto a) { return gelu_erf(a); });
}

// b is x for those that take dy and x, y for those that take dy and y.
#define ACTIVATION_BACKWARD(library, name, formula)                                          \
  OP(library, name, Tensor dy, Tensor x, Out dx) {                                           \
    const Operand in = plan.in(dy, "gradOutput", kFloats), at = plan.in(x, "self", kFloats); \
    const Operand out = plan.out(dx, "gradInput", kFloats);                                  \
    plan.require_shape(at, "self", in.shape);                                                \
    plan.require_type(at, "self", in.dtype);                                                 \
    plan.require_type(out, "gradInput", in.dtype);                                           \
    map_reals(plan, out, {in, at}, [](auto a, auto b) { return a * (formula); });            \
  }
ACTIVATION_BACKWARD(nn, GeluBackward, gelu_tanh_slope(b))
ACTIVATION_BACKWARD(nn, SiluBackward, swish_slope(b, decltype(b)(1)))
ACTIVATION_BACKWARD(nn, SigmoidBackward, b*(1 - b))
ACTIVATION_BACKWARD(nn, TanhBackward, 1 - b * b)

OP(nn, GeluBackwardV2, Tensor dy, Tensor x, const char* approximate, Out dx) {
  const Operand in = plan.in(dy, "gradOutput", kFloats), at = plan.in(x, "self", kFloats);
  const std::string formula = plan.text(approximate, "approximate");
  const Operand out = plan.out(dx, "gradInput", kFloats);
  plan.require_shape(at, "self", in.shape);
  plan.require_type(at, "self", in.dtype);
  plan.require_type(out, "gradInput", in.dtype);
  plan.require(formula == "none" || formula == "tanh", "approximate: expected \"none\" or \"tanh\"");
  if (formula == "tanh")
    map_reals(plan, out, {in, at}, [](auto a, auto b) { return a * gelu_tanh_slope(b); });
  else
    map_reals(plan, out, {in, at}, [](auto a, auto b) { return a * gelu_erf_slope(b); });
}

OP(nn, Swish, Tensor x, Scalar beta, Out y) {
  const Operand in = plan.in(x, "self", kFloats), out = plan.out(y, "out", kFloats);
  plan.require_type(out, "out", in.dtype);
  const double scale = beta ? plan.scalar(beta, "beta").real : 1.0;
  map_reals(plan, out, {in}, [scale](auto a) { return a * sigmoid(decltype(a)(scale) * a); });
}

OP(nn, SwishBackward, Tensor dy, Tensor x, Scalar beta, Out dx) {
  const Operand in = plan.in(dy, "gradOutput", kFloats), at = plan.in(x, "self", kFloats);
  const Operand out = plan.out(dx, "gradInput", kFloats);
  plan.require_shape(at, "self", in.shape);
  plan.require_type(at, "self", in.dtype);
  plan.require_type(out, "gradInput", in.dtype);
  const double scale = beta ? plan.scalar(beta, "beta").real : 1.0;
  map_reals(plan, out, {in, at}, [scale](auto a, auto b) { return a * swish_slope(b, decltype(b)(scale)); });
}

// ---- clamp, power, casts
// --------------------------------------------------------------------------------------------------------
static void plan_clamp(Plan& plan, Tensor x, const aclScalar* low, const aclScalar* high, Tensor y) {
  const Operand in = plan.in(x, "self", kNumbers), out = plan.out(y, "out", kNumbers);
  plan.require(low || high, "expected a bound");
  plan.require_type(out, "out", in.dtype);
  const bool has_low = low, has_high = high;
  const Number least = low ? Number(*low) : Number(), most = high ? Number(*high) : Number();
  map_numbers(plan, out, {in}, [=](auto a) {
    using Value = decltype(a);
    if (has_low && a < least.as<Value>()) a = least.as<Value>();
    if (has_high && a > most.as<Value>()) a = most.as<Value>();
    return a;
  });
}
OP(math, Clamp, Tensor x, Scalar low, Scalar high, Out y) {
  plan_clamp(plan, x, low ? &plan.scalar(low, "clipValueMin") : nullptr,
             high ? &plan.scalar(high, "clipValueMax") : nullptr, y);
}
OP(math, ClampMin, Tensor x, Scalar low, Out y) {
  plan_clamp(plan, x, &plan.scalar(low, "clipValueMin"), nullptr, y);
}
OP(math, ClampMax, Tensor x, Scalar high, Out y) {
  plan_clamp(plan, x, nullptr, &plan.scalar(high, "clipValueMax"), y);
}

OP(math, PowTensorScalar, Tensor x, Scalar exponent, Tensor y) {
  const Operand in = plan.in(x, "self", kReals), out = plan.out(y, "out", kReals);
  const double power = plan.scalar(exponent, "exponent").real;
  plan.require_type(out, "out", in.dtype);
  map_reals(plan, out, {in}, [power](auto a) {
    using Value = decltype(a);
    if (power == 2) return a * a;
    return static_cast<Value>(std::pow(a, static_cast<Value>(power)));
  });
}
OP(math, InplacePowTensorScalar, Out x, Scalar exponent) { plan_PowTensorScalar(plan, x, exponent, x); }
OP(math, PowScalarTensor, Scalar base, Tensor x, Tensor y) {
  const Operand in = plan.in(x, "exponent", kReals), out = plan.out(y, "out", kReals);
  const double value = plan.scalar(base, "self").real;
  map_reals(plan, out, {in}, [value](auto a) { return std::pow(static_cast<decltype(a)>(value), a); });
}

OP(math, Cast, Tensor x, int dtype, Out y) {
  const Operand in = plan.in(x, "self", kAll), out = plan.out(y, "out", kAll);
  plan.require_type(out, "out", static_cast<aclDataType>(dtype));
  plan.require_shape(out, "out", in.shape);
  plan.compute = [=](const Launch& launch) {
    if (kind_of({in}) == Kind::integer)
      store(launch, out, load<std::int64_t>(launch, in));
    else if (in.dtype == ACL_DOUBLE)
      store(launch, out, load<double>(launch, in));
    else
      store(launch, out, load<float>(launch, in));
  };
}

OP(math, IsFinite, Tensor x, Out y) {
  const Operand in = plan.in(x, "self", kNumbers), out = plan.out(y, "out", Types{ACL_BOOL});
  plan.require_shape(out, "out", in.shape);
  plan.compute = [=](const Launch& launch) {
    Dense<double> values = load<double>(launch, in);
    for (std::int64_t i = 0; i < values.count(); ++i) values[i] = std::isfinite(values[i]);
    store(launch, out, values);
  };
}

}  // namespace ascend_double
