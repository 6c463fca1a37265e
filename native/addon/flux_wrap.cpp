// The transformer's own methods: velocity, sampling steps and policy steps.
#include "addon/model_wrap.h"
#include "addon/models.h"
#include "models/flux.h"
#include "ops/ops.h"
#include "train/flow_policy.h"

namespace danceflux::addon {
namespace {

using train::PolicyInputs;
using train::RowOf;

std::vector<RowOf> to_rows(const Napi::Value& value, const char* name) {
  const Napi::Array array = to_array(value, name);
  std::vector<RowOf> rows;
  for (std::uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Object entry = to_object(array.Get(i), name);
    rows.push_back(
        {TensorWrap::unwrap(field(entry, "tensor"), name), to_integer(field(entry, "row"), "row")});
  }
  return rows;
}

std::vector<Tensor> to_tensors(const Napi::Value& value, const char* name) {
  const Napi::Array array = to_array(value, name);
  std::vector<Tensor> tensors;
  for (std::uint32_t i = 0; i < array.Length(); ++i)
    tensors.push_back(TensorWrap::unwrap(array.Get(i), name));
  return tensors;
}

/// What steers the blocks: prompt, time and guidance.
PolicyInputs to_steering(const Napi::Object& object) {
  PolicyInputs inputs;
  const Napi::Array prompts = to_array(field(object, "prompts"), "prompts");
  for (std::uint32_t i = 0; i < prompts.Length(); ++i)
    inputs.prompts.push_back(to_integer(prompts.Get(i), "prompts"));
  inputs.pooled = to_tensors(field(object, "pooled"), "pooled");
  inputs.timesteps = to_floats(field(object, "timesteps"), "timesteps");
  inputs.guidance = to_floats(field(object, "guidance"), "guidance");
  return inputs;
}

PolicyInputs to_inputs(const Napi::Object& object) {
  PolicyInputs inputs = to_steering(object);
  inputs.latents = to_rows(field(object, "latents"), "latents");
  inputs.text = to_tensors(field(object, "text"), "text");
  const Napi::Value modulations = object.Get("modulations");
  if (!modulations.IsUndefined()) inputs.modulations = to_rows(modulations, "modulations");
  inputs.grid_rows = int_field(object, "gridRows");
  inputs.grid_columns = int_field(object, "gridColumns");
  require(inputs.prompts.size() == inputs.latents.size(), "ERR_ARGUMENT", "prompts: expected ",
          inputs.latents.size(), ", got ", inputs.prompts.size());
  return inputs;
}

train::StepPlan to_plan(const Napi::Object& object) {
  return {train::step_kind_from_name(to_string(field(object, "kind"), "kind")),
          to_floats(field(object, "sigmas"), "sigmas"), to_floats(field(object, "nextSigmas"), "nextSigmas"),
          static_cast<float>(number_field(object, "eta"))};
}

/// All absent: a pass among others.
nn::BackwardMarks to_marks(const Napi::Object& object) {
  nn::BackwardMarks marks;
  const auto flag = [&](const char* name) {
    const Napi::Value value = object.Get(name);
    return !value.IsUndefined() && to_bool(value, name);
  };
  marks.synchronize = flag("synchronize");
  marks.ends_sample = flag("endsSample");
  if (!object.Get("samples").IsUndefined()) marks.samples = to_integer(object.Get("samples"), "samples");
  return marks;
}

train::StepNoise to_noise(const Napi::Value& value) {
  if (value.IsUndefined()) return std::monostate{};
  if (value.IsArray()) return to_noise_keys(value);
  return TensorWrap::unwrap(value, "noise");
}

class FluxWrap : public ModelWrap<FluxWrap, models::FluxTransformer> {
 public:
  using Base::Base;
  static std::vector<Napi::ClassPropertyDescriptor<FluxWrap>> own_methods() {
    return {InstanceMethod<&FluxWrap::velocity>("velocity"),
            InstanceMethod<&FluxWrap::modulations>("modulations"),
            InstanceMethod<&FluxWrap::velocity_gradient>("velocityGradient"),
            InstanceMethod<&FluxWrap::sample_step>("sampleStep"),
            InstanceMethod<&FluxWrap::policy_step>("policyStep")};
  }

 private:
  Napi::Value velocity(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      auto inputs = to_inputs(to_object(info[0], "inputs"));
      return run(
          info.Env(),
          [inputs = std::move(inputs)](models::FluxTransformer& model) {
            return train::predict(model, inputs);
          },
          as_handle());
    });
  }

  Napi::Value modulations(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      auto inputs = to_steering(to_object(info[0], "inputs"));
      return run(
          info.Env(),
          [inputs = std::move(inputs)](models::FluxTransformer& model) {
            return train::modulations(model, inputs);
          },
          as_handle());
    });
  }

  Napi::Value velocity_gradient(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      auto inputs = to_inputs(to_object(info[0], "inputs"));
      const Tensor seed = TensorWrap::unwrap(info[1], "dVelocity");
      const int recompute = static_cast<int>(to_integer(info[2], "recomputeBlocks"));
      return run(
          info.Env(),
          [inputs = std::move(inputs), seed, recompute](models::FluxTransformer& model) {
            return train::velocity_gradient(model, inputs, seed, recompute);
          },
          [handle = as_handle()](Napi::Env env, const train::VelocityGradient& gradient) {
            Napi::Object result = Napi::Object::New(env);
            result.Set("velocity", handle(env, gradient.velocity));
            result.Set("dLatents", handle(env, gradient.d_latents));
            result.Set("dText", handle(env, gradient.d_text));
            return result;
          });
    });
  }

  Napi::Value sample_step(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Napi::Object step = to_object(info[0], "step");
      auto inputs = to_inputs(step);
      auto plan = to_plan(step);
      auto noise = to_noise(step.Get("noise"));
      const bool denoised = to_bool(field(step, "denoised"), "denoised");
      return run(
          info.Env(),
          [inputs = std::move(inputs), plan = std::move(plan), noise = std::move(noise),
           denoised](models::FluxTransformer& model) {
            return train::sample_step(model, inputs, plan, noise, denoised);
          },
          [handle = as_handle()](Napi::Env env, const train::SampleReport& report) {
            Napi::Object result = Napi::Object::New(env);
            result.Set("latents", handle(env, report.latents));
            if (report.denoised) result.Set("denoised", handle(env, report.denoised));
            if (report.log_probs) result.Set("logProbs", handle(env, report.log_probs));
            return result;
          });
    });
  }

  Napi::Value policy_step(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Napi::Object step = to_object(info[0], "step");
      auto inputs = to_inputs(step);
      auto plan = to_plan(step);
      auto next = to_rows(field(step, "next"), "next");
      train::PolicyTerms terms{to_floats(field(step, "oldLogProbs"), "oldLogProbs"),
                               to_floats(field(step, "advantages"), "advantages"),
                               static_cast<float>(number_field(step, "clipRange")),
                               static_cast<float>(number_field(step, "lossDivisor")), to_marks(step)};
      const int recompute = int_field(step, "recomputeBlocks");
      return run(
          info.Env(),
          [inputs = std::move(inputs), plan = std::move(plan), next = std::move(next),
           terms = std::move(terms), recompute](models::FluxTransformer& model) {
            return train::policy_step(model, inputs, plan, next, terms, recompute);
          },
          [handle = as_handle()](Napi::Env env, const train::PolicyReport& report) {
            return handle(env, report.numbers);
          });
    });
  }
};

models::FluxConfig to_flux_config(const Napi::Object& object) {
  models::FluxConfig config;
  config.in_channels = int_field(object, "inChannels");
  config.out_channels = int_field(object, "outChannels");
  config.num_layers = int_field(object, "numLayers");
  config.num_single_layers = int_field(object, "numSingleLayers");
  config.attention_head_dim = int_field(object, "attentionHeadDim");
  config.num_attention_heads = int_field(object, "numAttentionHeads");
  config.joint_attention_dim = int_field(object, "jointAttentionDim");
  config.pooled_projection_dim = int_field(object, "pooledProjectionDim");
  config.guidance_embeds = to_bool(field(object, "guidanceEmbeds"), "guidanceEmbeds");
  // Widths are ints inside: their product must be one too.
  require(std::int64_t{config.num_attention_heads} * config.attention_head_dim <= 1 << 24, "ERR_ARGUMENT",
          "numAttentionHeads: expected a width of at most 2^24, got ", config.num_attention_heads,
          " heads of ", config.attention_head_dim);
  const Shape axes = to_shape(field(object, "axesDimsRope"), "axesDimsRope");
  require(axes.rank() == 3, "ERR_ARGUMENT", "axesDimsRope: expected 3 numbers, got ", axes);
  for (int i = 0; i < 3; ++i) config.axes_dims_rope[static_cast<std::size_t>(i)] = static_cast<int>(axes[i]);
  return config;
}

}  // namespace

void define_flux(Napi::Env env) { FluxWrap::define(env, "Flux"); }

Napi::Value make_flux(const Napi::CallbackInfo& info, const DevicePointer& device) {
  return FluxWrap::make(info.Env(), "Flux",
                        make_handle<models::FluxTransformer>(info, device, "flux",
                                                             to_flux_config(to_object(info[0], "config"))));
}

const ModelHandle* flux_handle(const Napi::Object& object) {
  return Environment::of(object.Env()).is_instance(object, "Flux") ? &FluxWrap::Unwrap(object)->alive()
                                                                   : nullptr;
}

}  // namespace danceflux::addon
