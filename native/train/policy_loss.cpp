#include "train/policy_loss.h"

#include <limits>
#include <vector>

#include "core/error.h"

namespace danceflux::train {

PolicyLoss policy_loss(const Tensor& log_prob, std::span<const float> old_log_prob,
                       std::span<const float> advantages, float clip_range) {
  const std::size_t rows = static_cast<std::size_t>(log_prob.numel());
  require(old_log_prob.size() == rows && advantages.size() == rows, "ERR_SHAPE", "policy_loss: expected ",
          rows, " old log probabilities and advantages, got ", old_log_prob.size(), " and ",
          advantages.size());
  // max(-A r, -A clip(r)) = -A min(r, 1 + c) for A > 0 and -A max(r, 1 - c) for A < 0. Written so, the two
  // sides never tie at r = 1, where both would claim the gradient.
  constexpr float kFar = std::numeric_limits<float>::max();
  std::vector<float> negated, low, high;
  for (float advantage : advantages) {
    negated.push_back(-advantage);
    low.push_back(advantage < 0 ? 1 - clip_range : -kFar);
    high.push_back(advantage > 0 ? 1 + clip_range : kFar);
  }
  Backend& device = backend_of(log_prob);
  const Shape shape = log_prob.shape();
  PolicyLoss result;
  result.ratio = ops::unary(UnaryOp::exp, ops::sub(log_prob, ops::from_host(device, shape, old_log_prob)));
  const Tensor capped = ops::binary(BinaryOp::min, result.ratio, ops::from_host(device, shape, high));
  const Tensor kept = ops::binary(BinaryOp::max, capped, ops::from_host(device, shape, low));
  result.loss = ops::mul(kept, ops::from_host(device, shape, negated));
  return result;
}

}  // namespace danceflux::train
