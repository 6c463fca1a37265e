// Elementwise ops: a function of numbers, a row per op.
#pragma once
#include <algorithm>

#include "ascend_double/ops/dense.h"

namespace ascend_double {

/// A scalar argument, in the type that is computed in.
struct Number {
  double real = 0;
  std::int64_t integer = 0;
  Number() = default;
  Number(double value) : real(value), integer(static_cast<std::int64_t>(value)) {}
  explicit Number(const aclScalar& scalar) : real(scalar.real), integer(scalar.integer) {}
  template <class Value>
  Value as() const {
    return std::is_integral_v<Value> ? static_cast<Value>(integer) : static_cast<Value>(real);
  }
};

enum class Kind : std::uint8_t { float32, float64, integer };

/// What is computed in: double if any operand is DOUBLE, float if any is a float, otherwise int64.
inline Kind kind_of(const std::vector<Operand>& operands) {
  Kind kind = Kind::integer;
  for (const Operand& operand : operands) {
    if (operand.dtype == ACL_DOUBLE) return Kind::float64;
    if (kFloats.has(operand.dtype)) kind = Kind::float32;
  }
  return kind;
}

template <class Value, class Function>
void run_elementwise(const Launch& launch, const Operand& out, const std::vector<Operand>& in,
                     const Function& function) {
  const std::int64_t count = out.count();
  if (count == 0) return;
  std::vector<Dense<Value>> values;
  for (const Operand& operand : in) values.push_back(load_broadcast<Value>(launch, operand, out.shape));
  Dense<Value> result(count);
  const Value* a = values[0].data();
  const Value* b = values.size() > 1 ? values[1].data() : nullptr;
  const Value* c = values.size() > 2 ? values[2].data() : nullptr;
  for (std::int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_invocable_v<Function, Value>)
      result[i] = static_cast<Value>(function(a[i]));
    else if constexpr (std::is_invocable_v<Function, Value, Value>)
      result[i] = static_cast<Value>(function(a[i], b[i]));
    else
      result[i] = static_cast<Value>(function(a[i], b[i], c[i]));
  }
  store(launch, out, result);
}

/// Function of floats only.
template <class Function>
void map_reals(Plan& plan, const Operand& out, const std::vector<Operand>& in, Function function) {
  plan.require_shape(out, "out", broadcast(plan, in));
  const Kind kind = kind_of(in);
  plan.compute = [=](const Launch& launch) {
    if (kind == Kind::float64)
      run_elementwise<double>(launch, out, in, function);
    else
      run_elementwise<float>(launch, out, in, function);
  };
}

/// Function of floats or int64.
template <class Function>
void map_numbers(Plan& plan, const Operand& out, const std::vector<Operand>& in, Function function) {
  const Kind kind = kind_of(in);
  const bool narrowing = kind != Kind::integer && !kReals.has(out.dtype) && out.dtype != ACL_BOOL;
  plan.require(!narrowing, "out: %s cannot hold floats", name_of(out.dtype));
  if (kind != Kind::integer) return map_reals(plan, out, in, function);
  plan.require_shape(out, "out", broadcast(plan, in));
  plan.compute = [=](const Launch& launch) { run_elementwise<std::int64_t>(launch, out, in, function); };
}

}  // namespace ascend_double
