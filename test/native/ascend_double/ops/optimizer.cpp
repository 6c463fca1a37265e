// AdamW, lists of tensors, random numbers.
#include <random>

#include "ascend_double/ops/dense.h"

namespace ascend_double {

// The kernel counts steps from 0: it corrects the moments for step + 1.
OP(nn, ApplyAdamWV2, Out parameter, Out first, Out second, Out maximum, Tensor gradient, Tensor count,
   float lr, float beta1, float beta2, float decay, float eps, bool amsgrad, bool maximize) {
  const Operand var = plan.out(parameter, "varRef", kFloats);
  const Types own{var.dtype};
  const Operand m = plan.out(first, "mRef", own), v = plan.out(second, "vRef", own);
  const Operand top = plan.optional_out(maximum, "maxGradNormOptionalRef", own);
  const Operand grad = plan.in(gradient, "grad", own),
                step = plan.in(count, "step", Types{ACL_INT64, ACL_FLOAT});
  plan.require(step.count() == 1, "step: expected one number, got %s", text_of(step.shape).c_str());
  plan.require(!amsgrad || top, "amsgrad wants maxGradNorm");
  for (const Operand* one : std::initializer_list<const Operand*>{&m, &v, &grad})
    plan.require_shape(*one, "m, v, grad", var.shape);
  plan.compute = [=](const Launch& launch) {
    const double t = load<double>(launch, step)[0] + 1;
    const float correction1 = static_cast<float>(1 - std::pow(static_cast<double>(beta1), t));
    const float correction2 = static_cast<float>(1 - std::pow(static_cast<double>(beta2), t));
    const Dense<float> p0 = load<float>(launch, var), m0 = load<float>(launch, m),
                       v0 = load<float>(launch, v);
    const Dense<float> g = load<float>(launch, grad), top0 = load_optional(launch, top);
    Dense<float> p(p0.count()), m1(p0.count()), v1(p0.count()), top1(amsgrad ? p0.count() : 0);
    for (std::int64_t i = 0; i < p.count(); ++i) {
      const float slope = maximize ? -g[i] : g[i];
      m1[i] = beta1 * m0[i] + (1 - beta1) * slope;
      v1[i] = beta2 * v0[i] + (1 - beta2) * slope * slope;
      float spread = v1[i];
      if (amsgrad) spread = top1[i] = std::max(top0[i], v1[i]);
      const float root = std::sqrt(spread / correction2) + eps;
      p[i] = p0[i] * (1 - lr * decay) - lr * (m1[i] / correction1) / root;
    }
    store(launch, var, p);
    store(launch, m, m1);
    store(launch, v, v1);
    if (amsgrad) store(launch, top, top1);
  };
}

// ---- lists
// -------------------------------------------------------------------------------------------------------------------------
namespace {

using Lists = std::vector<std::vector<Operand>>;

template <class Function>
void plan_foreach(Plan& plan, const Lists& in, const std::vector<Operand>& out, Function function) {
  plan.require(!out.empty() && out.size() <= 256, "expected 1 to 256 tensors, got %zu", out.size());
  for (const auto& list : in) {
    plan.require(list.size() == out.size(), "lists of %zu and %zu tensors", list.size(), out.size());
    for (std::size_t i = 0; i < out.size(); ++i) {
      plan.require_shape(list[i], "a member", out[i].shape);
      plan.require_type(list[i], "a member", out[0].dtype);
    }
  }
  plan.compute = [=](const Launch& launch) {
    for (std::size_t n = 0; n < out.size(); ++n) {
      std::vector<Dense<float>> values;
      for (const auto& list : in) values.push_back(load<float>(launch, list[n]));
      Dense<float> result(out[n].count());
      for (std::int64_t i = 0; i < result.count(); ++i) {
        float row[3] = {};
        for (std::size_t k = 0; k < values.size(); ++k) row[k] = values[k][i];
        result[i] = function(row);
      }
      store(launch, out[n], result);
    }
  };
}

}  // namespace

OP(nn, ForeachMulScalarV2, List x, Scalar scale, List y) {
  const std::vector<Operand> in = plan.in(x, "x", kFloats);
  const float factor = static_cast<float>(plan.scalar(scale, "scalar").real);
  plan_foreach(plan, {in}, plan.out(y, "out", kFloats),
               [factor](const float* row) { return row[0] * factor; });
}
OP(nn, ForeachAddListV2, List x, List y, Scalar alpha, List z) {
  const std::vector<Operand> a = plan.in(x, "x1", kFloats), b = plan.in(y, "x2", kFloats);
  const float factor = static_cast<float>(plan.scalar(alpha, "alpha").real);
  plan_foreach(plan, {a, b}, plan.out(z, "out", kFloats),
               [factor](const float* row) { return row[0] + factor * row[1]; });
}
OP(nn, ForeachAddcdivScalarV2, List x, List y, List z, Scalar value, List out) {
  const std::vector<Operand> a = plan.in(x, "x1", kFloats), b = plan.in(y, "x2", kFloats),
                             c = plan.in(z, "x3", kFloats);
  const float factor = static_cast<float>(plan.scalar(value, "scalar").real);
  plan_foreach(plan, {a, b, c}, plan.out(out, "out", kFloats),
               [factor](const float* row) { return row[0] + factor * (row[1] / row[2]); });
}
OP(nn, ForeachCopy, List x, List y) {
  const std::vector<Operand> in = plan.in(x, "x", kFloats);
  plan_foreach(plan, {in}, plan.out(y, "out", kFloats), [](const float* row) { return row[0]; });
}
OP(nn, ForeachZeroInplace, List x) {
  plan_foreach(plan, {}, plan.out(x, "x", kFloats), [](const float*) { return 0.0f; });
}

// ---- random: the same for the same seed and offset, and like no other generator
// ---------------------------------------------------
namespace {
template <class Distribution>
void plan_random(Plan& plan, Tensor x, std::uint64_t seed, std::uint64_t offset, Distribution distribution) {
  const Operand out = plan.out(x, "selfRef", kFloats);
  plan.compute = [=](const Launch& launch) {
    std::mt19937_64 bits(seed * 0x9e3779b97f4a7c15ULL + offset + 1);
    Distribution draw = distribution;
    Dense<float> values(out.count());
    for (std::int64_t i = 0; i < values.count(); ++i) values[i] = static_cast<float>(draw(bits));
    store(launch, out, values);
  };
}
}  // namespace

OP(math, InplaceNormal, Out x, float mean, float deviation, std::int64_t seed, std::int64_t offset) {
  plan_random(plan, x, static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset),
              std::normal_distribution<double>(static_cast<double>(mean), static_cast<double>(deviation)));
}
OP(math, InplaceUniform, Out x, double from, double to, std::uint64_t seed, std::uint64_t offset) {
  plan_random(plan, x, seed, offset, std::uniform_real_distribution<double>(from, to));
}

}  // namespace ascend_double
