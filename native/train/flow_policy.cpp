#include "train/flow_policy.h"

#include <algorithm>

#include "autograd/tape.h"
#include "core/error.h"
#include "train/policy_loss.h"

namespace danceflux::train {
namespace {

// A tensor that all rows share stays [1, ...], so that what depends on it alone is computed once.
Tensor rows_of_prompts(const std::vector<Tensor>& per_prompt, const std::vector<std::int64_t>& prompts,
                       const char* what) {
  std::vector<Tensor> rows;
  for (std::int64_t prompt : prompts) {
    require(prompt >= 0 && prompt < static_cast<std::int64_t>(per_prompt.size()), "ERR_SHAPE", what,
            ": expected a prompt below ", per_prompt.size(), ", got ", prompt);
    rows.push_back(per_prompt[static_cast<std::size_t>(prompt)]);
  }
  require(!rows.empty(), "ERR_SHAPE", what, ": expected at least one row");
  const bool shared =
      std::all_of(prompts.begin(), prompts.end(), [&](std::int64_t p) { return p == prompts.front(); });
  return shared ? rows.front() : ops::concat(rows, 0);
}

models::FluxInputs model_inputs(const PolicyInputs& inputs) {
  models::FluxInputs result;
  result.latents = gather(inputs.latents);
  result.text = rows_of_prompts(inputs.text, inputs.prompts, "text");
  result.pooled = rows_of_prompts(inputs.pooled, inputs.prompts, "pooled");
  result.timesteps = inputs.timesteps;
  result.guidance = inputs.guidance;
  result.grid_rows = inputs.grid_rows;
  result.grid_cols = inputs.grid_columns;
  if (!inputs.modulations.empty()) result.modulations = gather(inputs.modulations, "modulations");
  return result;
}

// Steps are taken in f32 whatever the network computes in.
Tensor as_f32(const Tensor& x) { return x.dtype() == DType::f32 ? x : ops::cast(x, DType::f32); }

Tensor noise_tensor(const StepNoise& noise, const Tensor& like) {
  if (const auto* tensor = std::get_if<Tensor>(&noise)) {
    require(tensor->shape() == like.shape(), "ERR_SHAPE", "noise: expected ", like.shape(), ", got ",
            tensor->shape());
    return *tensor;
  }
  const auto* keys = std::get_if<std::vector<NoiseKey>>(&noise);
  require(keys && static_cast<std::int64_t>(keys->size()) == like.dim(0), "ERR_SHAPE", "noise: expected ",
          like.dim(0), " keys, got ", keys ? keys->size() : 0);
  return keyed_noise(backend_of(like), *keys, {like.dim(1), like.dim(2)});
}

}  // namespace

Tensor gather(std::span<const RowOf> picked, const char* what) {
  require(!picked.empty(), "ERR_SHAPE", what, ": expected at least one row");
  std::vector<Tensor> rows;
  for (std::size_t first = 0; first < picked.size();) {  // runs of neighbouring rows stay together
    std::size_t last = first + 1;
    while (last < picked.size() && picked[last].tensor.id() == picked[first].tensor.id() &&
           picked[last].row == picked[last - 1].row + 1) {
      ++last;
    }
    rows.push_back(
        ops::narrow(picked[first].tensor, 0, picked[first].row, static_cast<std::int64_t>(last - first)));
    first = last;
  }
  return rows.size() == 1 ? rows.front() : ops::concat(rows, 0);
}

Tensor keyed_noise(Backend& device, std::span<const NoiseKey> keys, const Shape& dims) {
  Shape shape{static_cast<std::int64_t>(keys.size())};
  for (std::int64_t dim : dims) shape.push_back(dim);
  const auto per_key = static_cast<std::size_t>(dims.numel());
  std::vector<float> host(static_cast<std::size_t>(shape.numel()));
  for (std::size_t i = 0; i < keys.size(); ++i)
    keyed_normal(keys[i], std::span(host).subspan(i * per_key, per_key));
  return ops::from_host(device, shape, host);
}

Tensor predict(models::FluxTransformer& model, const PolicyInputs& inputs) {
  return as_f32(model.forward(model_inputs(inputs)));
}

Tensor modulations(models::FluxTransformer& model, const PolicyInputs& inputs) {
  return model.modulations(inputs.timesteps, inputs.guidance,
                           rows_of_prompts(inputs.pooled, inputs.prompts, "pooled"));
}

SampleReport sample_step(models::FluxTransformer& model, const PolicyInputs& inputs, const StepPlan& plan,
                         const StepNoise& noise, bool denoised) {
  const Tensor x = gather(inputs.latents);
  const Tensor v = predict(model, inputs);
  const FlowStep step(backend_of(x), plan.kind, plan.sigmas, plan.next_sigmas, plan.eta);
  const auto [next, log_probs] = step.take(x, v, step.random() ? noise_tensor(noise, x) : Tensor());
  return {.latents = next, .denoised = denoised ? step.denoised(x, v) : Tensor(), .log_probs = log_probs};
}

PolicyReport policy_step(models::FluxTransformer& model, const PolicyInputs& inputs, const StepPlan& plan,
                         std::span<const RowOf> next, const PolicyTerms& terms, int recompute_blocks) {
  const models::FluxInputs batch = model_inputs(inputs);
  const Tensor target = gather(next);
  Tape tape;
  model.watch(tape, terms.marks);
  const Tensor v = as_f32(model.forward(batch, recompute_blocks));
  const FlowStep step(backend_of(target), plan.kind, plan.sigmas, plan.next_sigmas, plan.eta);
  require(step.random(), "ERR_OPTION", "policy step: an ode step has no probability to learn from");
  const Tensor log_prob = step.log_prob(batch.latents, v, target);
  const PolicyLoss loss = policy_loss(log_prob, terms.old_log_probs, terms.advantages, terms.clip_range);
  const Tensor total = ops::affine(ops::sum(loss.loss, {0}), 1 / terms.loss_divisor);
  tape.backward(total, ops::full(backend_of(total), total.shape(), 1));
  const auto row = [](const Tensor& x) { return ops::reshape(x, {1, x.numel()}); };
  const Tensor numbers[] = {row(loss.ratio), row(log_prob), row(loss.loss)};
  return {ops::concat(numbers, 0)};
}

VelocityGradient velocity_gradient(models::FluxTransformer& model, const PolicyInputs& inputs,
                                   const Tensor& d_velocity, int recompute_blocks) {
  const models::FluxInputs batch = model_inputs(inputs);
  Tape tape;
  model.watch(tape);
  tape.watch(batch.latents);
  tape.watch(batch.text);
  VelocityGradient result;
  result.velocity = model.forward(batch, recompute_blocks);
  tape.backward(result.velocity, d_velocity);
  result.d_latents = tape.gradient(batch.latents);
  result.d_text = tape.gradient(batch.text);
  return result;
}

}  // namespace danceflux::train
