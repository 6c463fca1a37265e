#include "ascend_double/ops/elementwise.h"

namespace ascend_double {
namespace {

struct Pair {
  Operand a, b, out;
};

// Mixed float types are promoted; an integer does not mix with a float here.
Pair pair(Plan& plan, Tensor x, Tensor y, Tensor z) {
  Pair p{plan.in(x, "self", kAll), plan.in(y, "other", kAll), plan.out(z, "out", kAll)};
  plan.require((kind_of({p.a}) == Kind::integer) == (kind_of({p.b}) == Kind::integer), "%s and %s do not mix",
               name_of(p.a.dtype), name_of(p.b.dtype));
  return p;
}

Pair with_scalar(Plan& plan, Tensor x, Tensor z) {
  return {plan.in(x, "self", kAll), {}, plan.out(z, "out", kAll)};
}

template <class Function>
void add_like(Plan& plan, Tensor x, Tensor y, Scalar scale, Tensor z, Function function) {
  const Pair p = pair(plan, x, y, z);
  const Number alpha(plan.scalar(scale, "alpha"));
  map_numbers(plan, p.out, {p.a, p.b},
              [=](auto a, auto b) { return function(a, alpha.template as<decltype(a)>() * b); });
}

template <class Function>
void adds_like(Plan& plan, Tensor x, Scalar y, Scalar scale, Tensor z, Function function) {
  const Pair p = with_scalar(plan, x, z);
  const Number other(plan.scalar(y, "other")), alpha(plan.scalar(scale, "alpha"));
  map_numbers(plan, p.out, {p.a}, [=](auto a) {
    using Value = decltype(a);
    return function(a, static_cast<Value>(alpha.template as<Value>() * other.template as<Value>()));
  });
}

constexpr auto plus = [](auto a, auto b) { return static_cast<decltype(a)>(a + b); };
constexpr auto minus = [](auto a, auto b) { return static_cast<decltype(a)>(a - b); };
constexpr auto times = [](auto a, auto b) { return static_cast<decltype(a)>(a * b); };
constexpr auto over = [](auto a, auto b) {
  if constexpr (std::is_integral_v<decltype(a)>)
    return b == 0 ? decltype(a)(0) : static_cast<decltype(a)>(a / b);
  else
    return a / b;
};
// A NaN wins, as in torch.
constexpr auto larger = [](auto a, auto b) { return a != a || a > b ? a : b; };
constexpr auto smaller = [](auto a, auto b) { return a != a || a < b ? a : b; };

}  // namespace

#define ADD_LIKE(name, function)                                                                            \
  OP(math, name, Tensor x, Tensor y, Scalar alpha, Out z) { add_like(plan, x, y, alpha, z, function); }     \
  OP(math, Inplace##name, Out x, Tensor y, Scalar alpha) { add_like(plan, x, y, alpha, x, function); }      \
  OP(math, name##s, Tensor x, Scalar y, Scalar alpha, Out z) { adds_like(plan, x, y, alpha, z, function); } \
  OP(math, Inplace##name##s, Out x, Scalar y, Scalar alpha) { adds_like(plan, x, y, alpha, x, function); }
ADD_LIKE(Add, plus)
ADD_LIKE(Sub, minus)

template <class Function>
static void plan_pair(Plan& plan, Tensor x, Tensor y, Tensor z, Function function) {
  const Pair p = pair(plan, x, y, z);
  map_numbers(plan, p.out, {p.a, p.b}, function);
}
template <class Function>
static void plan_pair(Plan& plan, Tensor x, Scalar y, Tensor z, Function function) {
  const Pair p = with_scalar(plan, x, z);
  const Number other(plan.scalar(y, "other"));
  map_numbers(plan, p.out, {p.a}, [=](auto a) { return function(a, other.template as<decltype(a)>()); });
}

#define MUL_LIKE(name, function)                                                       \
  OP(math, name, Tensor x, Tensor y, Out z) { plan_pair(plan, x, y, z, function); }    \
  OP(math, Inplace##name, Out x, Tensor y) { plan_pair(plan, x, y, x, function); }     \
  OP(math, name##s, Tensor x, Scalar y, Out z) { plan_pair(plan, x, y, z, function); } \
  OP(math, Inplace##name##s, Out x, Scalar y) { plan_pair(plan, x, y, x, function); }
MUL_LIKE(Mul, times)
MUL_LIKE(Div, over)

OP(math, Maximum, Tensor x, Tensor y, Out z) { plan_pair(plan, x, y, z, larger); }
OP(math, Minimum, Tensor x, Tensor y, Out z) { plan_pair(plan, x, y, z, smaller); }

OP(math, ClampTensor, Tensor x, Tensor low, Tensor high, Out z) {
  const Operand a = plan.in(x, "self", kNumbers), least = plan.in(low, "clipValueMin", kNumbers);
  const Operand most = plan.in(high, "clipValueMax", kNumbers), out = plan.out(z, "out", kNumbers);
  map_numbers(plan, out, {a, least, most}, [](auto v, auto l, auto h) { return v < l ? l : v > h ? h : v; });
}

// ---- comparisons: BOOL out
// -------------------------------------------------------------------------------------------------------
template <class Function>
static void plan_compare(Plan& plan, Tensor x, Tensor y, Tensor z, Function function) {
  const Operand a = plan.in(x, "self", kAll), b = plan.in(y, "other", kAll),
                out = plan.out(z, "out", Types{ACL_BOOL});
  map_numbers(plan, out, {a, b}, function);
}
template <class Function>
static void plan_compare(Plan& plan, Tensor x, Scalar y, Tensor z, Function function) {
  const Operand a = plan.in(x, "self", kAll), out = plan.out(z, "out", Types{ACL_BOOL});
  const Number other(plan.scalar(y, "other"));
  map_numbers(plan, out, {a}, [=](auto v) { return function(v, other.template as<decltype(v)>()); });
}
#define COMPARE(name, relation)                                               \
  OP(math, name##Tensor, Tensor x, Tensor y, Out z) {                         \
    plan_compare(plan, x, y, z, [](auto a, auto b) { return a relation b; }); \
  }                                                                           \
  OP(math, name##Scalar, Tensor x, Scalar y, Out z) {                         \
    plan_compare(plan, x, y, z, [](auto a, auto b) { return a relation b; }); \
  }
COMPARE(Eq, ==)
COMPARE(Ne, !=)
COMPARE(Gt, >)
COMPARE(Ge, >=)
COMPARE(Lt, <)
COMPARE(Le, <=)

// ---- three operands
// ---------------------------------------------------------------------------------------------------------------
template <class Function>
static void plan_three(Plan& plan, Tensor x, Tensor y, Tensor z, Scalar scale, Tensor to, Function function) {
  const Operand a = plan.in(x, "self", kReals), b = plan.in(y, "tensor1", kReals),
                c = plan.in(z, "tensor2", kReals);
  const Operand out = plan.out(to, "out", kReals);
  const double value = plan.scalar(scale, "value").real;
  map_reals(plan, out, {a, b, c},
            [=](auto u, auto v, auto w) { return function(u, v, w, decltype(u)(value)); });
}
#define THREE(name, formula)                                                                       \
  OP(math, name, Tensor x, Tensor y, Tensor z, Scalar value, Out out) {                            \
    plan_three(plan, x, y, z, value, out, [](auto a, auto b, auto c, auto v) { return formula; }); \
  }                                                                                                \
  OP(math, Inplace##name, Out x, Tensor y, Tensor z, Scalar value) {                               \
    plan_three(plan, x, y, z, value, x, [](auto a, auto b, auto c, auto v) { return formula; });   \
  }
THREE(Addcmul, a + v * b * c)
THREE(Addcdiv, a + v * (b / c))

OP(math, Lerps, Tensor x, Tensor y, Scalar weight, Out z) {
  const Operand a = plan.in(x, "self", kReals), b = plan.in(y, "end", kReals),
                out = plan.out(z, "out", kReals);
  const double w = plan.scalar(weight, "weight").real;
  map_reals(plan, out, {a, b}, [w](auto u, auto v) { return u + decltype(u)(w) * (v - u); });
}

OP(math, SWhere, Tensor condition, Tensor x, Tensor y, Out z) {
  const Operand c = plan.in(condition, "condition", Types{ACL_BOOL, ACL_UINT8}), a = plan.in(x, "self", kAll);
  const Operand b = plan.in(y, "other", kAll), out = plan.out(z, "out", kAll);
  plan.require_type(b, "other", a.dtype);
  map_numbers(plan, out, {c, a, b}, [](auto k, auto u, auto v) { return k != 0 ? u : v; });
}

OP(math, InplaceMaskedFillScalar, Out x, Tensor mask, Scalar fill) {
  const Operand a = plan.in(x, "selfRef", kAll), m = plan.in(mask, "mask", Types{ACL_BOOL}),
                out = plan.out(x, "selfRef", kAll);
  const Number value(plan.scalar(fill, "value"));
  map_numbers(plan, out, {a, m},
              [=](auto u, auto k) { return k != 0 ? value.template as<decltype(u)>() : u; });
}

// ---- copies and fills
// -------------------------------------------------------------------------------------------------------------
OP(math, InplaceCopy, Out to, Tensor from) {
  const Operand out = plan.out(to, "selfRef", kAll), in = plan.in(from, "src", kAll);
  plan.require(broadcast(plan, {out, in}) == out.shape, "src %s does not broadcast to %s",
               text_of(in.shape).c_str(), text_of(out.shape).c_str());
  plan.compute = [=](const Launch& launch) {
    if (kind_of({in}) == Kind::integer)
      store(launch, out, load_broadcast<std::int64_t>(launch, in, out.shape));
    else if (in.dtype == ACL_DOUBLE)
      store(launch, out, load_broadcast<double>(launch, in, out.shape));
    else
      store(launch, out, load_broadcast<float>(launch, in, out.shape));
  };
}

static void plan_fill(Plan& plan, Tensor x, const Number& value) {
  const Operand out = plan.out(x, "selfRef", kAll);
  plan.compute = [=](const Launch& launch) {
    const auto fill = [&](auto type) {
      Dense<decltype(type)> values(out.count());
      std::fill(values.data(), values.data() + values.count(), value.as<decltype(type)>());
      store(launch, out, values);
    };
    kind_of({out}) == Kind::integer ? fill(std::int64_t{}) : fill(double{});
  };
}
OP(math, InplaceFillScalar, Out x, Scalar value) { plan_fill(plan, x, Number(plan.scalar(value, "value"))); }
OP(math, InplaceZero, Out x) { plan_fill(plan, x, 0.0); }
OP(math, InplaceOne, Out x) { plan_fill(plan, x, 1.0); }

OP(math, Arange, Scalar start, Scalar end, Scalar step, Out x) {
  const double from = plan.scalar(start, "start").real, to = plan.scalar(end, "end").real;
  const double by = plan.scalar(step, "step").real;
  const Operand out = plan.out(x, "out", kNumbers, 1, 1);
  plan.require(by != 0 && (to - from) / by >= 0, "the range is empty or endless");
  plan.require_shape(out, "out", {static_cast<std::int64_t>(std::ceil((to - from) / by))});
  plan.compute = [=](const Launch& launch) {
    Dense<double> values(out.count());
    for (std::int64_t i = 0; i < values.count(); ++i) values[i] = from + static_cast<double>(i) * by;
    store(launch, out, values);
  };
}

}  // namespace ascend_double
