// A FLUX transformer as a policy: one sampling step of a rollout, and the gradient of one step of the update.
// Both run the same forward and the same log probability, recording off or on, so that the first ratio is
// exactly one.
//
// Legend: B batch rows, L image tokens, C packed channels.
#pragma once
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "core/philox.h"
#include "models/flux.h"
#include "train/flow_step.h"

namespace danceflux::train {

/// Row `row` of a tensor [B, L, C].
struct RowOf {
  Tensor tensor;
  std::int64_t row = 0;
};

/// The inputs of a batch, put together from rows of earlier tensors and from embeddings that prompts share.
struct PolicyInputs {
  std::vector<RowOf> latents;
  std::vector<std::int64_t> prompts;  // per row: which of `text` and `pooled`
  std::vector<Tensor> text;           // per prompt [1, L_txt, D]
  std::vector<Tensor> pooled;         // per prompt [1, D_pooled]
  std::vector<float> timesteps;       // per row, 0 to 1000, as the network sees them
  std::vector<float> guidance;        // per row, times 1000; empty without guidance
  int grid_rows = 0, grid_columns = 0;
  std::vector<RowOf> modulations;  // per row, of a tensor that modulations() gave; or none
};

struct StepPlan {
  StepKind kind = StepKind::dance_sde;
  std::vector<float> sigmas, next_sigmas;  // per row
  float eta = 0;
};

/// Step noise: given, or one key per row.
using StepNoise = std::variant<std::monostate, Tensor, std::vector<NoiseKey>>;

/// Everything stays on the device: whoever reads a number waits for all work before it.
struct SampleReport {
  Tensor latents;    // [B, L, C] f32
  Tensor denoised;   // [B, L, C], when asked
  Tensor log_probs;  // [B] f32; undefined for ode
};

struct PolicyTerms {
  std::vector<float> old_log_probs, advantages;  // per row
  float clip_range = 0;
  float loss_divisor = 1;
  nn::BackwardMarks marks;  // what this pass is in its update
};

struct PolicyReport {
  Tensor numbers;  // [3, B] f32: ratios, log probabilities and losses; on the device as well
};

/// The rows of `picked` as one tensor [B, ...].
Tensor gather(std::span<const RowOf> picked, const char* what = "latents");
/// Keyed standard normals [keys, dims...] f32, made on the host.
Tensor keyed_noise(Backend& device, std::span<const NoiseKey> keys, const Shape& dims);

Tensor predict(models::FluxTransformer& model, const PolicyInputs& inputs);
/// FluxTransformer::modulations() of a row per timestep; looks at prompts, pooled, timesteps and guidance
/// alone.
Tensor modulations(models::FluxTransformer& model, const PolicyInputs& inputs);
SampleReport sample_step(models::FluxTransformer& model, const PolicyInputs& inputs, const StepPlan& plan,
                         const StepNoise& noise, bool denoised);
/// Adds the gradient of sum(losses) / loss_divisor to the trainable parameters'.
PolicyReport policy_step(models::FluxTransformer& model, const PolicyInputs& inputs, const StepPlan& plan,
                         std::span<const RowOf> next, const PolicyTerms& terms, int recompute_blocks);

/// velocity and the gradients of sum(velocity * d_velocity) for latents and text; those of the parameters are
/// added to theirs.
struct VelocityGradient {
  Tensor velocity, d_latents, d_text;
};
VelocityGradient velocity_gradient(models::FluxTransformer& model, const PolicyInputs& inputs,
                                   const Tensor& d_velocity, int recompute_blocks);

}  // namespace danceflux::train
