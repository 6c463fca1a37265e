// FLUX against diffusers: velocity and every gradient, adapters against PEFT, and what must be the same bit
// for bit.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "goldens.h"
#include "harness.h"
#include "models/flux.h"
#include "models/flux_tables.h"
#include "nn/lora.h"
#include "ops/ops.h"
#include "step_waits.h"
#include "train/flow_policy.h"

namespace danceflux::test {
namespace {

constexpr double kForward = 1e-5, kGradient = 1e-4;  // f32, relative error norms

models::FluxConfig flux_config(const Value& json) {
  models::FluxConfig config;
  config.in_channels = json.integer("in_channels");
  config.out_channels = json["out_channels"].is_null() ? 0 : json.integer("out_channels");
  config.num_layers = json.integer("num_layers");
  config.num_single_layers = json.integer("num_single_layers");
  config.attention_head_dim = json.integer("attention_head_dim");
  config.num_attention_heads = json.integer("num_attention_heads");
  config.joint_attention_dim = json.integer("joint_attention_dim");
  config.pooled_projection_dim = json.integer("pooled_projection_dim");
  config.guidance_embeds = json.flag("guidance_embeds");
  const Shape axes = json["axes_dims_rope"].shape();
  for (int i = 0; i < 3; ++i) config.axes_dims_rope[static_cast<std::size_t>(i)] = static_cast<int>(axes[i]);
  return config;
}

std::vector<float> thousandfold(std::vector<float> values) {
  for (float& value : values) value *= 1000;
  return values;
}

models::FluxInputs flux_inputs(Backend& device, const Value& run, const models::FluxConfig& config) {
  const Shape grid = run["grid"].shape();
  models::FluxInputs inputs;
  inputs.latents = input_tensor(device, run, "hidden_states");
  inputs.text = input_tensor(device, run, "encoder_hidden_states");
  inputs.pooled = input_tensor(device, run, "pooled_projections");
  inputs.timesteps = thousandfold(input_values(run, "timestep"));
  if (config.guidance_embeds) inputs.guidance = thousandfold(input_values(run, "guidance"));
  inputs.grid_rows = static_cast<int>(grid[0]);
  inputs.grid_cols = static_cast<int>(grid[1]);
  return inputs;
}

struct LoadedFlux {
  LoadedFlux(const GoldenCase& source, Backend& on)
      : config(flux_config(source.config())), model(config), device(on) {
    load_case(model, device, source);
  }
  LoadedFlux(const GoldenCase& source, Backend& on, DType storage)
      : config(flux_config(source.config())), model(config), device(on) {
    load_case(model, device, source, storage);
  }
  models::FluxConfig config;
  models::FluxTransformer model;
  Backend& device;
};

struct InputGradients {
  Tensor latents, text, pooled;
};

/// Adds gradients of sum(velocity * dvelocity) to the parameters and returns those of the inputs.
InputGradients run_backward(LoadedFlux& flux, const Value& run, int recompute) {
  const auto inputs = flux_inputs(flux.device, run, flux.config);
  Tape tape;
  flux.model.watch(tape);
  for (const Tensor& leaf : {inputs.latents, inputs.text, inputs.pooled}) tape.watch(leaf);
  const Tensor velocity = flux.model.forward(inputs, recompute);
  tape.backward(velocity, input_tensor(flux.device, run, "dvelocity"));
  return {tape.gradient(inputs.latents), tape.gradient(inputs.text), tape.gradient(inputs.pooled)};
}

void check_error(const std::string& what, double error, double tolerance) {
  if (!(error <= tolerance))
    fail_at(__FILE__, __LINE__, what, ": relative error ", error, " above ", tolerance);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::map<std::string, std::vector<float>> all_gradients(const nn::Module& model) {
  std::map<std::string, std::vector<float>> found;
  for (const auto& named : model.trainable_parameters()) found[named.name] = ops::to_host(named.gradient());
  return found;
}

constexpr auto kAll = [](const std::string&) { return true; };

}  // namespace

TEST("flux: velocity as diffusers") {
  for (const char* name : {"flux-guidance", "flux-plain", "flux-odd", "flux-deep", "flux-bf16"}) {
    const GoldenCase source = read_case(name);
    for (const auto& device : model_devices()) {
      LoadedFlux flux(source, *device);
      for (const Value& run : source.runs()) {
        const Tensor velocity = flux.model.forward(flux_inputs(*device, run, flux.config));
        const std::string what = name + (" " + run["name"].text()) + " on " + device->name();
        check_error(what, relative_error(velocity, source.golden(run, "velocity")), kForward);
      }
    }
  }
}

TEST("flux: gradient of every parameter and input as diffusers") {
  for (const char* name : {"flux-guidance", "flux-plain", "flux-odd"}) {
    const GoldenCase source = read_case(name);
    for (const auto& device : model_devices()) {
      LoadedFlux flux(source, *device);
      flux.model.set_trainable(kAll);
      for (const Value& run : source.runs()) {
        flux.model.zero_gradients();
        const auto inputs = run_backward(flux, run, 0);
        const std::string where = name + (" " + run["name"].text()) + " on " + device->name() + ": ";
        for (const auto& named : flux.model.trainable_parameters()) {
          const auto& wanted = source.golden(run, "grad/" + named.name);
          check_error(where + named.name, relative_error(named.gradient(), wanted), kGradient);
        }
        const auto check_input = [&](const std::string& input, const Tensor& got) {
          check_error(where + input, relative_error(got, source.golden(run, "grad/input." + input)),
                      kGradient);
        };
        check_input("hidden_states", inputs.latents);
        check_input("encoder_hidden_states", inputs.text);
        check_input("pooled_projections", inputs.pooled);
      }
      CHECK(device->declined().empty());  // the CPU has a kernel for every fused op of FLUX
    }
  }
}

TEST("flux: blocks that run again give bitwise the same gradients") {
  const GoldenCase source = read_case("flux-odd");
  const Value run = source.runs()[0];
  const auto device = cpu_device();
  LoadedFlux flux(source, *device);
  const auto with = [&](int recompute) {
    flux.model.set_trainable(kAll);
    flux.model.free_gradients();
    const auto inputs = run_backward(flux, run, recompute);
    auto found = all_gradients(flux.model);
    found["latents"] = ops::to_host(inputs.latents);
    found["text"] = ops::to_host(inputs.text);
    found["pooled"] = ops::to_host(inputs.pooled);
    return found;
  };
  const auto kept = with(0);
  for (const int recompute : {1, 2, -1}) {
    for (const auto& [name, gradient] : with(recompute)) {
      if (!same_bits(gradient, kept.at(name)))
        fail_at(__FILE__, __LINE__, name, " differs at recompute ", recompute);
    }
  }
}

TEST("flux: a row does not depend on the batch, nor on text given once") {
  const GoldenCase source = read_case("flux-deep");
  const Value run = source.runs()[0];  // batch 3
  const auto device = cpu_device();
  LoadedFlux flux(source, *device);
  auto inputs = flux_inputs(*device, run, flux.config);
  for (const Tensor* shared : {&inputs.text, &inputs.pooled}) {
    for (std::int64_t row = 1; row < 3; ++row) ops::copy_(shared->narrow(0, row, 1), shared->narrow(0, 0, 1));
  }
  const auto whole = ops::to_host(flux.model.forward(inputs));
  auto once = inputs;
  once.text = inputs.text.narrow(0, 0, 1);
  once.pooled = inputs.pooled.narrow(0, 0, 1);
  CHECK(same_bits(ops::to_host(flux.model.forward(once)), whole));
  for (std::int64_t row = 0; row < 3; ++row) {
    auto alone = once;
    alone.latents = inputs.latents.narrow(0, row, 1);
    alone.timesteps = {inputs.timesteps[static_cast<std::size_t>(row)]};
    alone.guidance = {inputs.guidance[static_cast<std::size_t>(row)]};
    const auto got = ops::to_host(flux.model.forward(alone));
    const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(got.size()) * row;
    CHECK(same_bits(got, {begin, begin + static_cast<std::ptrdiff_t>(got.size())}));
  }
}

TEST("flux: modulations made beforehand give the same bits, whatever rows they are made with") {
  for (const char* name : {"flux-guidance", "flux-plain", "flux-deep"}) {
    const GoldenCase source = read_case(name);
    for (const auto& device : model_devices()) {
      LoadedFlux flux(source, *device);
      const auto inputs = flux_inputs(*device, source.runs()[0], flux.config);
      const auto rows = static_cast<std::int64_t>(inputs.timesteps.size());
      // Rows of others before and after: a rollout's other steps.
      std::vector<float> timesteps{900}, guidance = inputs.guidance;
      timesteps.insert(timesteps.end(), inputs.timesteps.begin(), inputs.timesteps.end());
      timesteps.insert(timesteps.end(), {10, 20, 30});
      if (!guidance.empty()) {
        guidance.insert(guidance.begin(), 1000);
        guidance.insert(guidance.end(), {1000, 2000, 3000});
      }
      std::vector<Tensor> pooled{inputs.pooled.narrow(0, 0, 1), inputs.pooled};
      for (int more = 0; more < 3; ++more) pooled.push_back(inputs.pooled.narrow(0, 0, 1));
      const Tensor table = flux.model.modulations(timesteps, guidance, ops::concat(pooled, 0));
      CHECK(table.shape() == (Shape{rows + 4, flux.model.modulation_width()}));
      const auto direct = ops::to_host(flux.model.forward(inputs));
      auto ready = inputs;
      ready.modulations = table.narrow(0, 1, rows);
      ready.timesteps.clear();
      ready.guidance.clear();
      ready.pooled = {};
      if (!same_bits(ops::to_host(flux.model.forward(ready)), direct))
        fail_at(__FILE__, __LINE__, name, " on ", device->name(), ": other bits");
      ready.modulations = table.narrow(0, 0, rows);
      CHECK(!same_bits(ops::to_host(flux.model.forward(ready)), direct));
    }
  }
}

TEST("flux: inputs that disagree are refused by name") {
  const GoldenCase source = read_case("flux-guidance");
  const auto device = cpu_device(1);
  LoadedFlux flux(source, *device);
  const auto good = flux_inputs(*device, source.runs()[0], flux.config);
  const auto refused = [&](const std::function<void(models::FluxInputs&)>& spoil, const std::string& word) {
    auto bad = good;
    spoil(bad);
    try {
      flux.model.forward(bad);
    } catch (const Error& error) {
      CHECK_EQ(error.code, std::string("ERR_SHAPE"));
      if (!std::strstr(error.what(), word.c_str()))
        fail_at(__FILE__, __LINE__, word, " not in: ", error.what());
      return;
    }
    fail_at(__FILE__, __LINE__, "expected a refusal about ", word);
  };
  refused([](auto& in) { in.grid_rows = 5; }, "latents");
  refused([](auto& in) { in.text = in.latents; }, "text");
  refused([](auto& in) { in.text = {}; }, "text");
  refused([](auto& in) { in.text = in.text.narrow(1, 0, 0); }, "text");
  refused([](auto& in) { in.pooled = in.latents; }, "pooled");
  refused([](auto& in) { in.timesteps.push_back(1); }, "timesteps");
  refused([](auto& in) { in.guidance.clear(); }, "guidance");
  refused([](auto& in) { in.modulations = in.pooled; }, "modulations");
  CHECK_THROWS("ERR_SHAPE", flux.model.modulations({}, {}, good.pooled));
  CHECK_THROWS("ERR_SHAPE", flux.model.modulations({1, 2, 3}, {1000}, good.pooled));
  models::FluxConfig config = flux.config;
  config.axes_dims_rope = {4, 6, 4};
  CHECK_THROWS("ERR_SHAPE", models::FluxTransformer(config));
}

TEST("flux: tables of time and place") {
  const GoldenCase time = read_case("flux-timestep"), place = read_case("flux-rope");
  const Value run = time.runs()[0];
  check_error("timesteps",
              relative_error(models::timestep_embedding(input_values(run, "timestep")),
                             time.golden(run, "embedding").values),
              1e-5);  // two frequencies differ by an ulp, see flux_tables.h
  const auto table = models::rope_table(2, 3, 5, {16, 56, 56}, 10000);
  const auto twice = [](const std::vector<float>& pairs) {
    std::vector<float> values;
    for (const float value : pairs) values.insert(values.end(), 2, value);
    return values;
  };
  check_error("cos", relative_error(twice(table.cos), place.golden(place.runs()[0], "cos").values), 0);
  check_error("sin", relative_error(twice(table.sin), place.golden(place.runs()[0], "sin").values), 0);
}

TEST("flux: adapters as PEFT") {
  const GoldenCase source = read_case("flux-lora");
  const Value run = source.runs()[0];
  const Value adapter = source.json()["adapter"];
  std::vector<std::string> targets;
  for (const Value& target : adapter["targets"].items()) targets.push_back(target.text());
  const auto nothing = [](std::span<float> out, std::uint64_t, const std::string&) {
    std::ranges::fill(out, 0);
  };
  for (const auto& device : model_devices()) {
    LoadedFlux flux(source, *device);
    nn::add_lora(flux.model,
                 {.rank = adapter.integer("rank"),
                  .alpha = static_cast<float>(adapter.integer("alpha")),
                  .targets = targets},
                 nothing);
    const std::string prefix = "transformer.";
    for (const CaseParameter& parameter : source.parameters(adapter["parameters"])) {
      flux.model.load(parameter.name.substr(prefix.size()), DType::f32, parameter.values.data(),
                      parameter.values.size());
    }
    flux.model.set_trainable(nn::is_lora_name);
    const Tensor velocity = flux.model.forward(flux_inputs(*device, run, flux.config));
    check_error("velocity", relative_error(velocity, source.golden(run, "velocity")), kForward);
    for (const int recompute : {0, -1}) {
      flux.model.zero_gradients();
      const auto inputs = run_backward(flux, run, recompute);
      const auto trainable = flux.model.trainable_parameters();
      CHECK_EQ(trainable.size(), adapter["parameters"].items().size());
      for (const auto& named : trainable) {
        const auto& wanted = source.golden(run, "grad/" + prefix + named.name);
        check_error(named.name, relative_error(named.gradient(), wanted), kGradient);
      }
      check_error("latents", relative_error(inputs.latents, source.golden(run, "grad/input.hidden_states")),
                  kGradient);
    }
    nn::merge_lora(flux.model);
    const Tensor merged = flux.model.forward(flux_inputs(*device, run, flux.config));
    check_error("merged", relative_error(merged, source.golden(run, "velocity")), kForward);
    CHECK_EQ(flux.model.named_parameters().size(), source.json()["parameters"].items().size());
  }
}

// One rounding to bf16 is 2^-9; a hundred ops, each with one, leave some ten of them.
TEST("flux: bf16 activations stay near the numbers of f32, forward and backward") {
  constexpr double kNear = 0x1p-5;
  const GoldenCase source = read_case("flux-guidance");
  for (const auto& device : model_devices()) {
    if (device->activation_dtype(DType::bf16) != DType::bf16) continue;
    LoadedFlux flux(source, *device, DType::bf16);
    flux.model.set_trainable(kAll);
    for (const Value& run : source.runs()) {
      const std::string where = run["name"].text() + " on " + device->name() + ": ";
      const Tensor velocity = flux.model.forward(flux_inputs(*device, run, flux.config));
      CHECK(velocity.dtype() == DType::f32);
      check_error(where + "velocity", relative_error(velocity, source.golden(run, "velocity")), kNear);
      flux.model.zero_gradients();
      const auto inputs = run_backward(flux, run, 0);
      check_error(where + "latents",
                  relative_error(inputs.latents, source.golden(run, "grad/input.hidden_states")), kNear);
      for (const auto& named : flux.model.trainable_parameters()) {
        const auto& wanted = source.golden(run, "grad/" + named.name);
        check_error(where + named.name, relative_error(named.gradient(), wanted), 4 * kNear);
      }
    }
  }
}

void check_steps_wait_for_nothing(Backend& device, const std::function<std::uint64_t()>& waits) {
  const GoldenCase source = read_case("flux-guidance");
  LoadedFlux flux(source, device);
  flux.model.set_trainable(kAll);
  const models::FluxInputs given = flux_inputs(device, source.runs()[0], flux.config);
  train::PolicyInputs inputs;
  const auto rows = static_cast<std::size_t>(given.latents.dim(0));
  for (std::size_t row = 0; row < rows; ++row) {
    const auto at = static_cast<std::int64_t>(row);
    inputs.latents.push_back({given.latents, at});
    inputs.prompts.push_back(at);
    inputs.text.push_back(ops::narrow(given.text, 0, at, 1));
    inputs.pooled.push_back(ops::narrow(given.pooled, 0, at, 1));
  }
  inputs.timesteps = given.timesteps;
  inputs.guidance = given.guidance;
  inputs.grid_rows = given.grid_rows, inputs.grid_columns = given.grid_cols;
  const train::StepPlan plan{train::StepKind::dance_sde, std::vector<float>(rows, 0.6f),
                             std::vector<float>(rows, 0.5f), 0.3f};
  std::vector<NoiseKey> keys(rows);
  for (std::size_t row = 0; row < rows; ++row) keys[row].sample = static_cast<std::uint32_t>(row);
  for (int turn = 0; turn < 3; ++turn) {
    const std::uint64_t before = waits();
    const train::SampleReport sampled = train::sample_step(flux.model, inputs, plan, keys, false);
    std::vector<train::RowOf> next;
    for (std::size_t row = 0; row < rows; ++row)
      next.push_back({sampled.latents, static_cast<std::int64_t>(row)});
    train::PolicyTerms terms{std::vector<float>(rows, -1), std::vector<float>(rows, 1), 0.1f, 1, {}};
    const train::PolicyReport learned = train::policy_step(flux.model, inputs, plan, next, terms, 0);
    if (turn > 0) CHECK_EQ(waits(), before);  // the first takes memory and makes tables
    const std::vector<float> old = ops::to_host(sampled.log_probs), now = ops::to_host(learned.numbers);
    CHECK_EQ(now.size(), 3 * rows);
    for (std::size_t row = 0; row < rows; ++row) CHECK_EQ(now[rows + row], old[row]);
    CHECK(waits() > before);  // reading does
  }
}

TEST("flux: neither a step of a rollout nor one of an update waits for an NPU") {
  const auto device = model_devices().front();
  const auto calls =
      reinterpret_cast<std::uint64_t (*)(const char*)>(dlsym(RTLD_DEFAULT, "ascend_double_calls"));
  if (!calls) throw Skipped{"only the double of CANN counts"};
  check_steps_wait_for_nothing(*device,
                               [&] { return calls("aclrtSynchronizeStream") + calls("aclrtMemcpy"); });
}

}  // namespace danceflux::test
