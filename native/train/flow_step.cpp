#include "train/flow_step.h"

#include <array>
#include <cmath>
#include <numbers>
#include <utility>

#include "core/error.h"

namespace danceflux::train {
namespace {

constexpr std::array<std::pair<const char*, StepKind>, 4> kKinds{{{"dance-sde", StepKind::dance_sde},
                                                                  {"flow-sde", StepKind::flow_sde},
                                                                  {"cps", StepKind::cps},
                                                                  {"ode", StepKind::ode}}};

// The density of a normal with this standard deviation, as weight and constant of the mean squared distance.
void set_gaussian_density(StepCoefficients& row, double std) {
  row.std = static_cast<float>(std);
  row.weight = static_cast<float>(0.5 / (std * std));
  row.constant = static_cast<float>(std::log(std) + 0.5 * std::log(2 * std::numbers::pi));
}

StepCoefficients sde_coefficients(double sigma, double d, double rate) {
  StepCoefficients row;
  const double half = 0.5 * rate * rate;
  row.cx = static_cast<float>(1 + half * d / sigma);
  row.cv = static_cast<float>(d * (1 + half * (1 - sigma) / sigma));
  set_gaussian_density(row, rate * std::sqrt(-d));
  return row;
}

StepCoefficients cps_coefficients(double sigma, double next, double eta) {
  StepCoefficients row;
  const double std = next * std::sin(eta * std::numbers::pi / 2);
  const double noise_part = std::sqrt(next * next - std * std);
  row.cx = static_cast<float>((1 - next) + noise_part);
  row.cv = static_cast<float>(-(1 - next) * sigma + noise_part * (1 - sigma));
  row.std = static_cast<float>(std);
  row.weight = 1;
  return row;
}

}  // namespace

StepKind step_kind_from_name(const std::string& name) {
  for (const auto& [known, kind] : kKinds) {
    if (name == known) return kind;
  }
  fail("ERR_OPTION", "step: expected dance-sde, flow-sde, cps or ode, got \"", name, "\"");
}

StepCoefficients step_coefficients(StepKind kind, float sigma, float next_sigma, float eta) {
  require(sigma <= 1 && sigma > next_sigma && next_sigma >= 0, "ERR_OPTION",
          "step: expected 1 >= sigma > next sigma >= 0, got ", sigma, " and ", next_sigma);
  require(kind == StepKind::ode || (eta > 0 && (kind != StepKind::cps || eta <= 1)), "ERR_OPTION",
          "step: expected eta above 0 (cps: at most 1), got ", eta);
  const double level = sigma, next = next_sigma, d = next - level;
  switch (kind) {
    case StepKind::dance_sde:
      return sde_coefficients(level, d, eta);
    case StepKind::flow_sde: {
      const double clean = 1 - (level == 1 ? next : level);
      return sde_coefficients(level, d, eta * std::sqrt(level / clean));
    }
    case StepKind::cps:
      return cps_coefficients(level, next, eta);
    case StepKind::ode:
      break;
  }
  StepCoefficients row;
  row.cv = static_cast<float>(d);
  return row;
}

FlowStep::FlowStep(Backend& device, StepKind kind, std::span<const float> sigmas,
                   std::span<const float> next_sigmas, float eta)
    : random_(kind != StepKind::ode) {
  require(sigmas.size() == next_sigmas.size(), "ERR_SHAPE", "step: expected ", sigmas.size(),
          " next levels, got ", next_sigmas.size());
  // In one upload, sigma beside them.
  constexpr std::int64_t kNumbers = 6;
  std::vector<float> table;
  for (std::size_t i = 0; i < sigmas.size(); ++i) {
    const StepCoefficients row = step_coefficients(kind, sigmas[i], next_sigmas[i], eta);
    table.insert(table.end(), {row.cx, row.cv, row.std, row.weight, row.constant, sigmas[i]});
  }
  const auto count = static_cast<std::int64_t>(sigmas.size());
  const Tensor numbers = ops::from_host(device, {count, kNumbers}, table);
  coefficients_ = ops::narrow(numbers, 1, 0, kNumbers - 1);
  sigma_ = ops::reshape(ops::narrow(numbers, 1, kNumbers - 1, 1), {count, 1, 1});
}

ops::FlowStepped FlowStep::take(const Tensor& x, const Tensor& v, const Tensor& noise) const {
  return ops::flow_step(x, v, noise, coefficients_);
}

Tensor FlowStep::denoised(const Tensor& x, const Tensor& v) const { return ops::sub(x, ops::mul(v, sigma_)); }

Tensor FlowStep::log_prob(const Tensor& x, const Tensor& v, const Tensor& next) const {
  return ops::flow_log_prob(x, v, next, coefficients_);
}

}  // namespace danceflux::train
