// Layer, RMS and group norm, forward and backward. Statistics and sums in f32.
#include "ascend_double/ops/rows.h"

namespace ascend_double {
namespace {

struct Moments {
  float mean, rstd;
};

Moments moments(const float* x, std::int64_t count, double eps, float* scratch) {
  const float mean = sum(x, count) / static_cast<float>(count);
  for (std::int64_t i = 0; i < count; ++i) scratch[i] = (x[i] - mean) * (x[i] - mean);
  const float variance = sum(scratch, count) / static_cast<float>(count);
  return {mean, 1 / std::sqrt(variance + static_cast<float>(eps))};
}

/// dx of (x - mean) * rstd for one row; g = dy * weight. Without centering: of x * rstd.
void normal_backward(const float* g, const float* x, float mean, float rstd, std::int64_t count,
                     bool centered, float* scratch, float* dx) {
  for (std::int64_t i = 0; i < count; ++i) scratch[i] = g[i] * (x[i] - mean) * rstd;
  const float along = sum(scratch, count) / static_cast<float>(count);
  const float across = centered ? sum(g, count) / static_cast<float>(count) : 0;
  for (std::int64_t i = 0; i < count; ++i) dx[i] = rstd * (g[i] - across - (x[i] - mean) * rstd * along);
}

/// Column sums of rows [rows, width], the rows taken from `start` on, round.
void add_columns(const Dense<float>& terms, std::int64_t rows, std::int64_t width, std::int64_t start,
                 float* sums) {
  std::fill(sums, sums + width, 0.0f);
  for (std::int64_t n = 0; n < rows; ++n) {
    const float* row = terms.data() + (n + start) % rows * width;
    for (std::int64_t i = 0; i < width; ++i) sums[i] += row[i];
  }
}

Dims statistics_shape(const Operand& x, std::size_t normalized) {
  Dims shape = x.shape;
  for (std::size_t i = shape.size() - normalized; i < shape.size(); ++i) shape[i] = 1;
  return shape;
}

struct LayerNorm {
  Operand x, weight, bias, out, mean, rstd;
  double eps;
  std::int64_t width;
};

void check_normalized(Plan& plan, const Operand& x, const Dims& shape) {
  plan.require(!shape.empty() && shape.size() <= x.shape.size() &&
                   std::equal(shape.rbegin(), shape.rend(), x.shape.rbegin()),
               "normalizedShape %s does not end %s", text_of(shape).c_str(), text_of(x.shape).c_str());
}

// Statistics in f32, or in the dtype of x.
void check_statistics(Plan& plan, const Operand& operand, const char* name, const Operand& x,
                      const Dims& shape) {
  if (!operand) return;
  plan.require(operand.dtype == ACL_FLOAT || operand.dtype == x.dtype, "%s: expected FLOAT or %s", name,
               name_of(x.dtype));
  plan.require_shape(operand, name, shape);
}

void run_layer_norm(const Launch& launch, const LayerNorm& n) {
  const Dense<float> x = load<float>(launch, n.x);
  const Dense<float> weight = load_optional(launch, n.weight), bias = load_optional(launch, n.bias);
  const std::int64_t rows = n.width ? x.count() / n.width : 0;
  Dense<float> y(x.count()), means(rows), rstds(rows), scratch(n.width);
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* at = x.data() + row * n.width;
    const Moments m = moments(at, n.width, n.eps, scratch.data());
    means[row] = m.mean;
    rstds[row] = m.rstd;
    for (std::int64_t i = 0; i < n.width; ++i)
      y[row * n.width + i] = (at[i] - m.mean) * m.rstd * (n.weight ? weight[i] : 1) + (n.bias ? bias[i] : 0);
  }
  store(launch, n.out, y);
  store(launch, n.mean, means);
  store(launch, n.rstd, rstds);
}

}  // namespace

OP(nn, LayerNorm, Tensor input, Ints normalized, Tensor weight, Tensor bias, double eps, Out output, Out mean,
   Out rstd) {
  LayerNorm n;
  n.x = plan.in(input, "input", kFloats, 1);
  const Dims shape = plan.ints(normalized, "normalizedShape");
  check_normalized(plan, n.x, shape);
  n.weight = plan.optional(weight, "weight", kFloats);
  n.bias = plan.optional(bias, "bias", kFloats);
  if (n.weight) plan.require_shape(n.weight, "weight", shape);
  if (n.bias) plan.require_shape(n.bias, "bias", shape);
  n.out = plan.out(output, "out", kFloats);
  plan.require_shape(n.out, "out", n.x.shape);
  plan.require_type(n.out, "out", n.x.dtype);
  n.mean = plan.optional_out(mean, "meanOut", kFloats);
  n.rstd = plan.optional_out(rstd, "rstdOut", kFloats);
  check_statistics(plan, n.mean, "meanOut", n.x, statistics_shape(n.x, shape.size()));
  check_statistics(plan, n.rstd, "rstdOut", n.x, statistics_shape(n.x, shape.size()));
  n.eps = eps;
  n.width = count_of(shape);
  plan.workspace = 4096;
  plan.compute = [=](const Launch& launch) { run_layer_norm(launch, n); };
}

OP(nn, LayerNormWithImplMode, Tensor input, Ints normalized, Tensor weight, Tensor bias, double eps,
   Out output, Out mean, Out rstd, std::int32_t mode) {
  plan.require(mode >= 0 && mode <= 2, "implMode: expected 0, 1 or 2, got %d", mode);
  plan_LayerNorm(plan, input, normalized, weight, bias, eps, output, mean, rstd);
  const Operand x = plan.in(input, "input", kFloats);
  plan.slots.pop_back();
  plan.require(mode != 2 || x.dtype == ACL_FLOAT16, "implMode 2 is for FLOAT16");
}

namespace {

struct NormBackward {
  Operand dy, x, mean, rstd, weight, dx, dweight, dbias;
  std::int64_t width;
  bool fixed = true;
};

void run_norm_backward(const Launch& launch, const NormBackward& n) {
  const Dense<float> dy = load<float>(launch, n.dy), x = load<float>(launch, n.x);
  const Dense<float> rstd = load<float>(launch, n.rstd), mean = load_optional(launch, n.mean);
  const Dense<float> weight = load_optional(launch, n.weight);
  const std::int64_t rows = n.width ? x.count() / n.width : 0;
  Dense<float> dx(x.count()), terms(x.count()), g(n.width), scratch(n.width), sums(n.width);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t at = row * n.width;
    const float center = n.mean ? mean[row] : 0;
    for (std::int64_t i = 0; i < n.width; ++i) {
      g[i] = dy[at + i] * (n.weight ? weight[i] : 1);
      terms[at + i] = dy[at + i] * (x[at + i] - center) * rstd[row];
    }
    normal_backward(g.data(), x.data() + at, center, rstd[row], n.width, bool(n.mean), scratch.data(),
                    dx.data() + at);
  }
  store(launch, n.dx, dx);
  const std::int64_t start = rows ? start_of(launch, n.fixed, 0) % rows : 0;
  if (n.dweight) {
    add_columns(terms, rows, n.width, start, sums.data());
    store(launch, n.dweight, sums);
  }
  if (n.dbias) {
    add_columns(dy, rows, n.width, start, sums.data());
    store(launch, n.dbias, sums);
  }
}

}  // namespace

OP(nn, LayerNormBackward, Tensor gradient, Tensor input, Ints normalized, Tensor mean, Tensor rstd,
   Tensor weight, Tensor bias, Bools wanted, Out dinput, Out dweight, Out dbias) {
  NormBackward n;
  n.dy = plan.in(gradient, "gradOut", kFloats, 1);
  n.x = plan.in(input, "input", kFloats, 1);
  const Dims shape = plan.ints(normalized, "normalizedShape");
  check_normalized(plan, n.x, shape);
  plan.require_shape(n.dy, "gradOut", n.x.shape);
  plan.require_type(n.dy, "gradOut", n.x.dtype);
  n.mean = plan.in(mean, "mean", kFloats);
  n.rstd = plan.in(rstd, "rstd", kFloats);
  check_statistics(plan, n.mean, "mean", n.x, statistics_shape(n.x, shape.size()));
  check_statistics(plan, n.rstd, "rstd", n.x, statistics_shape(n.x, shape.size()));
  plan.require(n.mean.dtype == n.rstd.dtype, "mean and rstd differ in dtype");
  n.weight = plan.optional(weight, "weight", kFloats);
  const Operand b = plan.optional(bias, "bias", kFloats);
  if (n.weight) plan.require_shape(n.weight, "weight", shape);
  if (b) plan.require_shape(b, "bias", shape);
  const std::vector<bool> mask = plan.bools(wanted, "outputMask", 3);
  const auto result = [&](bool want, Out tensor, const char* name, const Dims& wanted_shape) {
    if (!want) return plan.optional_out(nullptr, name, kFloats);
    const Operand operand = plan.out(tensor, name, kFloats);
    plan.require_shape(operand, name, wanted_shape);
    return operand;
  };
  n.dx = result(mask[0], dinput, "gradInputOut", n.x.shape);
  n.dweight = result(mask[1], dweight, "gradWeightOut", shape);
  n.dbias = result(mask[2], dbias, "gradBiasOut", shape);
  n.width = count_of(shape);
  plan.workspace = 4096;
  plan.compute = [=](const Launch& launch) { run_norm_backward(launch, n); };
}

// ---- AdaLayerNorm: layer norm * (1 + scale) + shift, with CANN 9
// -----------------------------------------------------------------
OP9(nn, AdaLayerNorm, Tensor x, Tensor scale, Tensor shift, Tensor weight, Tensor bias, double eps, Out y) {
  LayerNorm n;
  n.x = plan.in(x, "x", kFloats, 2);
  const Operand gain = plan.in(scale, "scale", kFloats), offset = plan.in(shift, "shift", kFloats);
  const std::int64_t width = n.x.size(-1);
  n.weight = plan.optional(weight, "weight", kFloats);
  n.bias = plan.optional(bias, "bias", kFloats);
  n.out = plan.out(y, "out", kFloats);
  plan.require_shape(n.out, "out", n.x.shape);
  for (const Operand* one : std::initializer_list<const Operand*>{&gain, &offset, &n.out})
    plan.require_type(*one, "scale, shift, out", n.x.dtype);
  plan.require(gain.count() * n.x.size(-2) == n.x.count() && gain.size(-1) == width,
               "scale: one row per batch");
  plan.require_shape(offset, "shift", gain.shape);
  if (n.weight) plan.require_shape(n.weight, "weight", {width});
  if (n.bias) plan.require_shape(n.bias, "bias", {width});
  const std::int64_t length = n.x.size(-2);
  plan.compute = [=](const Launch& launch) {
    const Dense<float> in = load<float>(launch, n.x), g = load<float>(launch, gain),
                       o = load<float>(launch, offset);
    const Dense<float> w = load_optional(launch, n.weight), b = load_optional(launch, n.bias);
    Dense<float> out(in.count()), scratch(width);
    for (std::int64_t row = 0; row < in.count() / width; ++row) {
      const Moments m = moments(in.data() + row * width, width, eps, scratch.data());
      for (std::int64_t i = 0; i < width; ++i) {
        const float normal =
            (in[row * width + i] - m.mean) * m.rstd * (n.weight ? w[i] : 1) + (n.bias ? b[i] : 0);
        out[row * width + i] = normal * (1 + g[row / length * width + i]) + o[row / length * width + i];
      }
    }
    store(launch, n.out, out);
  };
}

// ---- RMS norm
// -----------------------------------------------------------------------------------------------------------------------
static void check_rms_types(Plan& plan, const Operand& x, const Operand& gamma) {
  plan.require(gamma.dtype == x.dtype || gamma.dtype == ACL_FLOAT, "gamma: %s with x in %s",
               name_of(gamma.dtype), name_of(x.dtype));
}

OP(nn, RmsNorm, Tensor input, Tensor weight, double eps, Tensor output, Tensor root) {
  const Operand x = plan.in(input, "x", kFloats, 1), gamma = plan.in(weight, "gamma", kFloats, 1);
  const Operand y = plan.out(output, "yOut", kFloats), rstd = plan.out(root, "rstdOut", Types{ACL_FLOAT});
  check_normalized(plan, x, gamma.shape);
  check_rms_types(plan, x, gamma);
  plan.require_shape(y, "yOut", x.shape);
  plan.require_type(y, "yOut", x.dtype);
  plan.require_shape(rstd, "rstdOut", statistics_shape(x, gamma.shape.size()));
  const std::int64_t width = gamma.count();
  plan.workspace = 4096;
  plan.compute = [=](const Launch& launch) {
    const Dense<float> values = load<float>(launch, x), gain = load<float>(launch, gamma);
    const std::int64_t rows = values.count() / width;
    Dense<float> out(values.count()), roots(rows), squares(width);
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* at = values.data() + row * width;
      for (std::int64_t i = 0; i < width; ++i) squares[i] = at[i] * at[i];
      roots[row] =
          1 / std::sqrt(sum(squares.data(), width) / static_cast<float>(width) + static_cast<float>(eps));
      for (std::int64_t i = 0; i < width; ++i) out[row * width + i] = at[i] * roots[row] * gain[i];
    }
    store(launch, y, out);
    store(launch, rstd, roots);
  };
}

OP(nn, RmsNormGrad, Tensor gradient, Tensor input, Tensor root, Tensor weight, Tensor dinput,
   Tensor dweight) {
  NormBackward n;
  n.dy = plan.in(gradient, "dy", kFloats, 2);
  n.x = plan.in(input, "x", kFloats, 2);
  n.rstd = plan.in(root, "rstd", Types{ACL_FLOAT});
  n.weight = plan.in(weight, "gamma", kFloats, 1);
  n.dx = plan.out(dinput, "dxOut", kFloats);
  n.dweight = plan.out(dweight, "dgammaOut", Types{ACL_FLOAT});
  check_normalized(plan, n.x, n.weight.shape);
  check_rms_types(plan, n.x, n.weight);
  plan.require_shape(n.dy, "dy", n.x.shape);
  plan.require_type(n.dy, "dy", n.x.dtype);
  plan.require_shape(n.rstd, "rstd", statistics_shape(n.x, n.weight.shape.size()));
  plan.require_shape(n.dx, "dxOut", n.x.shape);
  plan.require_type(n.dx, "dxOut", n.x.dtype);
  plan.require_shape(n.dweight, "dgammaOut", n.weight.shape);
  n.width = n.weight.count();
  n.fixed = plan.deterministic;
  plan.workspace = 8192;
  plan.compute = [=](const Launch& launch) { run_norm_backward(launch, n); };
}

}  // namespace ascend_double
