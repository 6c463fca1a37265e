#include "ascend_double/ops/rows.h"

namespace ascend_double {
namespace {

struct GroupNorm {
  Operand x, gamma, beta, out, mean, rstd;
  std::int64_t batch = 1, channels = 1, pixels = 1, groups = 1;
  double eps = 1e-5;
  bool silu = false;
};

void run_group_norm(const Launch& launch, const GroupNorm& n) {
  const Dense<float> x = load<float>(launch, n.x);
  const Dense<float> gamma = load_optional(launch, n.gamma), beta = load_optional(launch, n.beta);
  const std::int64_t per_group = n.channels / n.groups, count = per_group * n.pixels;
  Dense<float> y(x.count()), means(n.batch * n.groups), rstds(n.batch * n.groups), scratch(count);
  for (std::int64_t at = 0; at < n.batch * n.groups; ++at) {
    const float* values = x.data() + at * count;
    const float mean = sum(values, count) / static_cast<float>(count);
    for (std::int64_t i = 0; i < count; ++i) scratch[i] = (values[i] - mean) * (values[i] - mean);
    const float rstd =
        1 / std::sqrt(sum(scratch.data(), count) / static_cast<float>(count) + static_cast<float>(n.eps));
    means[at] = mean;
    rstds[at] = rstd;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t channel = at % n.groups * per_group + i / n.pixels;
      const float value =
          (values[i] - mean) * rstd * (n.gamma ? gamma[channel] : 1) + (n.beta ? beta[channel] : 0);
      y[at * count + i] = n.silu ? value / (1 + std::exp(-value)) : value;
    }
  }
  store(launch, n.out, y);
  store(launch, n.mean, means);
  store(launch, n.rstd, rstds);
}

void check_sizes(Plan& plan, const Operand& x, std::int64_t batch, std::int64_t channels, std::int64_t pixels,
                 std::int64_t groups) {
  plan.require(batch * channels * pixels == x.count() && x.size(0) == batch && x.size(1) == channels,
               "N %lld, C %lld, HxW %lld do not describe %s", static_cast<long long>(batch),
               static_cast<long long>(channels), static_cast<long long>(pixels), text_of(x.shape).c_str());
  plan.require(groups > 0 && channels % groups == 0, "%lld channels in %lld groups",
               static_cast<long long>(channels), static_cast<long long>(groups));
}

void plan_group_norm(Plan& plan, GroupNorm n, Tensor weight, Tensor bias, Out output, Out mean, Out rstd) {
  const Types own{n.x.dtype};
  n.gamma = plan.optional(weight, "gamma", own, 1, 1);
  n.beta = plan.optional(bias, "beta", own, 1, 1);
  if (n.gamma) plan.require_shape(n.gamma, "gamma", {n.channels});
  if (n.beta) plan.require_shape(n.beta, "beta", {n.channels});
  n.out = plan.out(output, "out", own);
  n.mean = plan.out(mean, "meanOut", own);
  n.rstd = plan.out(rstd, "rstdOut", own);
  plan.require_shape(n.out, "out", n.x.shape);
  plan.require_shape(n.mean, "meanOut", {n.batch, n.groups});
  plan.require_shape(n.rstd, "rstdOut", {n.batch, n.groups});
  plan.require(n.eps > 0, "eps: expected a positive number");
  plan.workspace = 4096;
  plan.compute = [=](const Launch& launch) { run_group_norm(launch, n); };
}

void plan_group_norm_silu(Plan& plan, Tensor input, Tensor weight, Tensor bias, std::int64_t groups,
                          double eps, bool silu, Out output, Out mean, Out rstd) {
  GroupNorm n;
  n.x = plan.in(input, "self", kFloats, 2);
  n.batch = n.x.size(0);
  n.channels = n.x.size(1);
  n.pixels = n.batch * n.channels != 0 ? n.x.count() / (n.batch * n.channels) : 0;
  n.groups = groups;
  n.eps = eps;
  n.silu = silu;
  check_sizes(plan, n.x, n.batch, n.channels, n.pixels, groups);
  plan_group_norm(plan, n, weight, bias, output, mean, rstd);
}

}  // namespace

OP(nn, GroupNorm, Tensor input, Tensor weight, Tensor bias, std::int64_t batch, std::int64_t channels,
   std::int64_t pixels, std::int64_t groups, double eps, Out output, Out mean, Out rstd) {
  GroupNorm n;
  n.x = plan.in(input, "self", kFloats, 2);
  n.batch = batch;
  n.channels = channels;
  n.pixels = pixels;
  n.groups = groups;
  n.eps = eps;
  check_sizes(plan, n.x, batch, channels, pixels, groups);
  plan_group_norm(plan, n, weight, bias, output, mean, rstd);
}

OP(nn, GroupNormSilu, Tensor input, Tensor weight, Tensor bias, std::int64_t groups, double eps, Out output,
   Out mean, Out rstd) {
  plan_group_norm_silu(plan, input, weight, bias, groups, eps, true, output, mean, rstd);
}
OP(nn, GroupNormSiluV2, Tensor input, Tensor weight, Tensor bias, std::int64_t groups, double eps, bool silu,
   Out output, Out mean, Out rstd) {
  plan_group_norm_silu(plan, input, weight, bias, groups, eps, silu, output, mean, rstd);
}

namespace {

struct GroupNormBackward {
  Operand dy, x, mean, rstd, gamma, dx, dgamma, dbeta;
  std::int64_t batch, channels, pixels, groups;
  bool fixed;
};

void run_group_norm_backward(const Launch& launch, const GroupNormBackward& n) {
  const Dense<float> dy = load<float>(launch, n.dy), x = load<float>(launch, n.x);
  const Dense<float> mean = load<float>(launch, n.mean), rstd = load<float>(launch, n.rstd);
  const Dense<float> gamma = load_optional(launch, n.gamma);
  const std::int64_t per_group = n.channels / n.groups, count = per_group * n.pixels;
  Dense<float> dx(x.count()), g(count), along(count), dgamma(n.channels), dbeta(n.channels), terms(n.pixels);
  std::fill(dgamma.data(), dgamma.data() + n.channels, 0.0f);
  std::fill(dbeta.data(), dbeta.data() + n.channels, 0.0f);
  const std::int64_t start = n.batch ? start_of(launch, n.fixed, 0) % n.batch : 0;
  for (std::int64_t turn = 0; turn < n.batch; ++turn) {
    const std::int64_t image = (turn + start) % n.batch;
    for (std::int64_t group = 0; group < n.groups; ++group) {
      const std::int64_t at = (image * n.groups + group) * count;
      const float center = mean[image * n.groups + group], root = rstd[image * n.groups + group];
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t channel = group * per_group + i / n.pixels;
        g[i] = dy[at + i] * (n.gamma ? gamma[channel] : 1);
        along[i] = g[i] * (x[at + i] - center) * root;
      }
      const float a = sum(along.data(), count) / static_cast<float>(count);
      const float b = sum(g.data(), count) / static_cast<float>(count);
      for (std::int64_t i = 0; i < count; ++i)
        dx[at + i] = root * (g[i] - b - (x[at + i] - center) * root * a);
      for (std::int64_t c = 0; c < per_group; ++c) {
        const float* slope = dy.data() + at + c * n.pixels;
        for (std::int64_t i = 0; i < n.pixels; ++i)
          terms[i] = slope[i] * (x[at + c * n.pixels + i] - center) * root;
        dgamma[group * per_group + c] += sum(terms.data(), n.pixels, start);
        dbeta[group * per_group + c] += sum(slope, n.pixels, start);
      }
    }
  }
  store(launch, n.dx, dx);
  store(launch, n.dgamma, dgamma);
  store(launch, n.dbeta, dbeta);
}

}  // namespace

OP(nn, GroupNormBackward, Tensor gradient, Tensor input, Tensor mean, Tensor rstd, Tensor weight,
   std::int64_t batch, std::int64_t channels, std::int64_t pixels, std::int64_t groups, Bools wanted,
   Out dinput, Out dweight, Out dbias) {
  GroupNormBackward n;
  n.dy = plan.in(gradient, "gradOut", kFloats, 2);
  const Types own{n.dy.dtype};
  n.x = plan.in(input, "input", own, 2);
  n.mean = plan.in(mean, "mean", own);
  n.rstd = plan.in(rstd, "rstd", own);
  n.gamma = plan.optional(weight, "gamma", own, 1, 1);
  check_sizes(plan, n.x, batch, channels, pixels, groups);
  plan.require_shape(n.dy, "gradOut", n.x.shape);
  plan.require_shape(n.mean, "mean", {batch, groups});
  plan.require_shape(n.rstd, "rstd", {batch, groups});
  if (n.gamma) plan.require_shape(n.gamma, "gamma", {channels});
  const std::vector<bool> mask = plan.bools(wanted, "outputMask", 3);
  n.dx = mask[0] ? plan.out(dinput, "gradInput", own) : plan.optional_out(nullptr, "gradInput", own);
  n.dgamma =
      mask[1] ? plan.out(dweight, "gradGammaOut", own) : plan.optional_out(nullptr, "gradGammaOut", own);
  n.dbeta = mask[2] ? plan.out(dbias, "gradBetaOut", own) : plan.optional_out(nullptr, "gradBetaOut", own);
  if (n.dx) plan.require_shape(n.dx, "gradInput", n.x.shape);
  if (n.dgamma) plan.require_shape(n.dgamma, "gradGammaOut", {channels});
  if (n.dbeta) plan.require_shape(n.dbeta, "gradBetaOut", {channels});
  n.batch = batch;
  n.channels = channels;
  n.pixels = pixels;
  n.groups = groups;
  n.fixed = plan.deterministic;
  plan.workspace = 4096;
  plan.compute = [=](const Launch& launch) { run_group_norm_backward(launch, n); };
}

}  // namespace ascend_double
