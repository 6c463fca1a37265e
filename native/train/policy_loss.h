// The clipped surrogate of policy gradients (PPO, as DanceGRPO uses it: no KL, no entropy).
#pragma once
#include <span>

#include "ops/ops.h"

namespace danceflux::train {

struct PolicyLoss {
  Tensor ratio;  // [B] exp(log_prob - old_log_prob)
  Tensor loss;   // [B] max(-A ratio, -A clip(ratio, 1 - c, 1 + c))
};

/// log_prob [B] (recorded), old_log_prob and advantages [B] on the host. Backward from `loss` gives -A ratio
/// to log_prob where the unclipped term counts and 0 where the clipped one does; at ratio 1 the unclipped one
/// counts.
PolicyLoss policy_loss(const Tensor& log_prob, std::span<const float> old_log_prob,
                       std::span<const float> advantages, float clip_range);

}  // namespace danceflux::train
