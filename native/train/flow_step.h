// One step along the flow, as a distribution: where the next latent lies, and how likely a given one is.
//
// Legend: x [B, L, C] latent at noise level sigma, v [B, L, C] velocity (noise - data), sigma' the next
// level, D = sigma - sigma' > 0. Every kind has a mean that is linear in x and v, mean = cx x + cv v, so one
// code path serves all of them, in the rollout and in the update alike: that is what makes the first policy
// ratio exactly one.
#pragma once
#include <span>
#include <vector>

#include "ops/ops.h"

namespace danceflux::train {

enum class StepKind : std::uint8_t {
  dance_sde,  // DanceGRPO: std = eta sqrt(D)
  flow_sde,   // Flow-GRPO: std = eta sqrt(sigma / (1 - sigma)) sqrt(D)
  cps,        // coefficients-preserving sampling: std = sigma' sin(eta pi / 2)
  ode,        // Euler, no noise
};

/// Throws ERR_OPTION for an unknown name ("dance-sde", "flow-sde", "cps", "ode").
StepKind step_kind_from_name(const std::string& name);

/// One row's step. log p(x') = -weight * mean over elements of (x' - mean)^2 - constant.
struct StepCoefficients {
  float cx = 1, cv = 0, std = 0;
  float weight = 0, constant = 0;
};

/// Computed in double from the f32 levels. Throws ERR_OPTION unless 1 >= sigma > sigma' >= 0 and eta fits the
/// kind. dance_sde and flow_sde: mean = x (1 + s^2 d / (2 sigma)) + v d (1 + s^2 (1 - sigma) / (2 sigma))
/// with d = -D and s = std / sqrt(D); flow_sde replaces 1 - sigma by 1 - sigma' under the root where sigma
/// is 1. cps: mean = (1 - sigma') x0 + sqrt(sigma'^2 - std^2) x1 with x0 = x - sigma v and x1 = x + (1 -
/// sigma) v; its density drops the normalisation (weight 1, constant 0).
StepCoefficients step_coefficients(StepKind kind, float sigma, float next_sigma, float eta);

/// The steps of a batch, on the device.
class FlowStep {
 public:
  FlowStep(Backend& device, StepKind kind, std::span<const float> sigmas, std::span<const float> next_sigmas,
           float eta);
  /// The next latent and its log_prob; without noise the mean.
  ops::FlowStepped take(const Tensor& x, const Tensor& v, const Tensor& noise) const;
  /// x0 = x - sigma v
  Tensor denoised(const Tensor& x, const Tensor& v) const;
  /// [B]: of a next latent that was drawn before.
  Tensor log_prob(const Tensor& x, const Tensor& v, const Tensor& next) const;
  bool random() const { return random_; }

 private:
  Tensor coefficients_;  // [B, 5] as the ops want them
  Tensor sigma_;         // [B, 1, 1]
  bool random_;
};

}  // namespace danceflux::train
