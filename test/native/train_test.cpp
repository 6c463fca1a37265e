// The arithmetic of learning: steps along the flow, the clipped loss and its gradient, the optimizer.
#include <cmath>
#include <cstring>
#include <limits>

#include "autograd/tape.h"
#include "goldens.h"
#include "harness.h"
#include "io/safetensors.h"
#include "ops/ops.h"
#include "temporary.h"
#include "train/flow_policy.h"
#include "train/flow_step.h"
#include "train/optimizer.h"
#include "train/policy_loss.h"

namespace danceflux::test {
namespace {

constexpr double kForward = 1e-5, kGradient = 1e-4;  // f32, relative error norms

train::StepKind kind_of(const Value& run) {
  const std::string& solver = run["solver"].text();
  return train::step_kind_from_name(solver == "cps" ? solver : solver + "-sde");
}

/// The same step for every row, as a run tells it.
train::FlowStep step_of(Backend& device, const Value& run, std::int64_t rows) {
  const std::vector<float> sigmas = input_values(run, "sigmas");
  const auto index = static_cast<std::size_t>(run.integer("index"));
  const auto count = static_cast<std::size_t>(rows);
  const std::vector<float> now(count, sigmas[index]), next(count, sigmas[index + 1]);
  return {device, kind_of(run), now, next, static_cast<float>(run["eta"].number())};
}

void check_error(const std::string& what, double error, double tolerance) {
  if (!(error <= tolerance))
    fail_at(__FILE__, __LINE__, what, ": relative error ", error, " above ", tolerance);
}

TEST("train: steps along the flow and their log probability") {
  const GoldenCase source = read_case("sde-step");
  CHECK(source.runs().size() >= 13);
  for (const auto& device : model_devices()) {
    for (const Value& run : source.runs()) {
      const std::string name = run["name"].text();
      const auto check = [&](const char* output, const Tensor& got) {
        check_error(name + " " + output, relative_error(got, source.golden(run, output)), kForward);
      };
      const Tensor x = input_tensor(*device, run, "latents"), v = input_tensor(*device, run, "velocity");
      const train::FlowStep step = step_of(*device, run, x.dim(0));
      CHECK(step.random());
      const auto [next, log_prob] = step.take(x, v, input_tensor(*device, run, "noise"));
      check("mean", step.take(x, v, {}).next);
      check("next", next);
      // Where nothing is left of the noise, the estimate and the picture are one.
      check("x0", step.denoised(x, v));
      check("log_prob", log_prob);
      // What an update computes of it is the same to the bit: the first ratio is one.
      CHECK(ops::to_host(step.log_prob(x, v, next)) == ops::to_host(log_prob));
    }
  }
}

TEST("train: noise is the host's on every device, bit for bit") {
  const std::vector<NoiseKey> keys = {{.seed = 7, .iteration = 1, .prompt = 2, .sample = 3},
                                      {.seed = 7, .iteration = 1, .prompt = 2, .sample = 4}};
  const Shape dims{5, 13};
  std::vector<float> wanted(2 * 5 * 13);
  for (std::size_t i = 0; i < keys.size(); ++i)
    keyed_normal(keys[i], std::span(wanted).subspan(i * 5 * 13, 5 * 13));
  for (const auto& device : model_devices()) {
    const std::vector<float> got = ops::to_host(train::keyed_noise(*device, keys, dims));
    CHECK_EQ(got.size(), wanted.size());
    CHECK(std::memcmp(got.data(), wanted.data(), wanted.size() * sizeof(float)) == 0);
  }
}

TEST("train: a step without noise is Euler's") {
  for (const auto& device : model_devices()) {
    const std::vector<float> sigmas{1, 0.25f}, next{0.25f, 0};
    const train::FlowStep step(*device, train::StepKind::ode, sigmas, next, 0);
    CHECK(!step.random());
    const Tensor x = ops::from_host(*device, {2, 1, 2}, std::vector<float>{1, 2, 3, 4});
    const Tensor v = ops::from_host(*device, {2, 1, 2}, std::vector<float>{4, -8, 2, 1});
    const std::vector<float> got = ops::to_host(step.take(x, v, {}).next);
    const std::vector<float> wanted{-2, 8, 2.5f, 3.75f};
    for (std::size_t i = 0; i < wanted.size(); ++i) CHECK_EQ(got[i], wanted[i]);
  }
}

TEST("train: rows of one batch may be at different levels") {
  const GoldenCase source = read_case("sde-step");
  const auto device = cpu_device();
  const Value first = source.runs()[0], second = source.runs()[2];
  CHECK_EQ(first["solver"].text(), second["solver"].text());
  const std::vector<float> sigmas = input_values(first, "sigmas");
  const auto level = [&](const Value& run, int ahead) {
    return sigmas[static_cast<std::size_t>(run.integer("index") + ahead)];
  };
  const train::FlowStep mixed(*device, kind_of(first), std::vector<float>{level(first, 0), level(second, 0)},
                              std::vector<float>{level(first, 1), level(second, 1)}, 0.3f);
  const Tensor x = input_tensor(*device, first, "latents"), v = input_tensor(*device, first, "velocity");
  const Tensor mean = mixed.take(x, v, {}).next;
  const std::vector<float> both = ops::to_host(mean);
  const std::vector<float> upper = ops::to_host(step_of(*device, first, 2).take(x, v, {}).next);
  const std::vector<float> lower = ops::to_host(step_of(*device, second, 2).take(x, v, {}).next);
  for (std::size_t i = 0; i < both.size(); ++i) CHECK_EQ(both[i], i < both.size() / 2 ? upper[i] : lower[i]);
}

TEST("train: steps that cannot be") {
  using train::step_coefficients, train::StepKind;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const auto& [sigma, next] :
       {std::pair{1.1f, 0.5f}, {0.5f, 0.5f}, {0.5f, 0.6f}, {0.5f, -0.1f}, {nan, 0.5f}, {0.5f, nan}}) {
    CHECK_THROWS("ERR_OPTION", step_coefficients(StepKind::dance_sde, sigma, next, 0.3f));
  }
  CHECK_THROWS("ERR_OPTION", step_coefficients(StepKind::dance_sde, 1, 0.5f, 0));
  CHECK_THROWS("ERR_OPTION", step_coefficients(StepKind::flow_sde, 1, 0.5f, nan));
  CHECK_THROWS("ERR_OPTION", step_coefficients(StepKind::cps, 1, 0.5f, 1.5f));
  CHECK_THROWS("ERR_OPTION", train::step_kind_from_name("ddim"));
  const auto device = cpu_device();
  CHECK_THROWS("ERR_SHAPE", train::FlowStep(*device, StepKind::ode, std::vector<float>{1.0f}, {}, 0));
}

TEST("train: the clipped loss and its gradient") {
  const GoldenCase source = read_case("policy-loss");
  CHECK(source.runs().size() >= 4);
  for (const auto& device : model_devices()) {
    for (const Value& run : source.runs()) {
      const std::string name = run["name"].text();
      const Tensor x = input_tensor(*device, run, "latents"), v = input_tensor(*device, run, "velocity");
      const std::int64_t rows = x.dim(0);
      const train::FlowStep step = step_of(*device, run, rows);
      Tape tape;
      tape.watch(v);
      const Tensor log_prob = step.log_prob(x, v, input_tensor(*device, run, "next"));
      const auto old = input_values(run, "old_log_prob"), advantages = input_values(run, "advantages");
      const auto result =
          train::policy_loss(log_prob, old, advantages, static_cast<float>(run["clip"].number()));
      const auto divisor = static_cast<float>(static_cast<double>(rows) * run["divisor"].number());
      const Tensor total = ops::affine(ops::sum(result.loss, {0}), 1 / divisor);
      tape.backward(total, ops::full(*device, total.shape(), 1));
      const auto check = [&](const char* output, const Tensor& got, double tolerance) {
        check_error(name + " " + output, relative_error(got, source.golden(run, output)), tolerance);
      };
      check("log_prob", log_prob, kForward);
      check("ratio", result.ratio, kForward);
      check("loss", ops::reshape(total, {1}), kForward);
      check("dvelocity", tape.gradient(v), kGradient);
    }
  }
}

/// d loss / d log probability of one row.
float slope(Backend& device, float log_prob, float old, float advantage, float clip) {
  const Tensor p = ops::from_host(device, {1}, std::vector<float>{log_prob});
  Tape tape;
  tape.watch(p);
  const auto result = train::policy_loss(p, std::vector{old}, std::vector{advantage}, clip);
  tape.backward(result.loss, ops::full(device, {1}, 1));
  return ops::to_host(tape.gradient(p))[0];
}

TEST("train: who is clipped") {
  for (const auto& device : model_devices()) {
    CHECK_EQ(slope(*device, -1, -1, 2, 1e-4f), -2.0f);  // at ratio 1 all of it counts
    CHECK_EQ(slope(*device, -1, -1, -2, 1e-4f), 2.0f);
    CHECK_EQ(slope(*device, 0.5f, 0, 2, 0.2f), 0.0f);  // went the right way, far enough
    CHECK_EQ(slope(*device, -0.5f, 0, -2, 0.2f), 0.0f);
    CHECK_NEAR(slope(*device, -0.5f, 0, 2, 0.2f), -2 * std::exp(-0.5), 1e-6);  // the wrong way: never clipped
    CHECK_NEAR(slope(*device, 0.5f, 0, -2, 0.2f), 2 * std::exp(0.5), 1e-6);
    CHECK_EQ(slope(*device, 0.5f, 0, 0, 0.2f), 0.0f);
    CHECK_THROWS("ERR_SHAPE", train::policy_loss(ops::full(*device, {2}, 0), std::vector{0.0f},
                                                 std::vector{0.0f, 1.0f}, 0.1f));
  }
}

// ---- optimizer
// ---------------------------------------------------------------------------------------------------------

/// Parameters of the fixtures with gradients to be written into.
struct Trained {
  Trained(Backend& on, const Value& run, const std::vector<std::string>& names, DType dtype = DType::f32)
      : device(on) {
    for (const std::string& name : names) {
      const Tensor initial = input_tensor(on, run, name);
      parameters.push_back({name, ops::cast(initial, dtype), ops::full(on, initial.shape(), 0)});
      if (dtype == DType::f32) parameters.back().value = initial;
    }
  }
  void set_gradients(const Value& run, int step) {
    for (const auto& parameter : parameters) {
      device.upload(parameter.gradient,
                    input_values(run, "grad" + std::to_string(step) + "." + parameter.name).data());
    }
  }
  std::vector<std::vector<float>> values() const {
    std::vector<std::vector<float>> all;
    for (const auto& parameter : parameters) all.push_back(ops::to_host(parameter.value));
    return all;
  }

  Backend& device;
  std::vector<train::TrainedParameter> parameters;
};

const std::vector<std::string> kNames{"weight", "bias", "norm"};

train::OptimizerOptions options_of(const Value& run) {
  train::OptimizerOptions options;
  options.weight_decay = run["weight_decay"].number();
  return options;
}
double rate_of(const Value& run) { return run["lr"].number(); }
double clip_of(const Value& run) { return run["clip"].is_null() ? 0 : run["clip"].number(); }

/// What the optimizer keeps of a parameter, `state` being "m" or "v".
std::vector<float> kept(const io::TensorFile& file, const std::string& name, const std::string& state) {
  for (const io::FileTensor& tensor : file.tensors()) {
    if (tensor.name != name + "." + state) continue;
    std::vector<float> values(static_cast<std::size_t>(tensor.shape.numel()));
    io::read_rows(tensor, 0, -1, false, DType::f32, values.data());
    return values;
  }
  return {};
}

TEST("train: AdamW and clipping as PyTorch") {
  const GoldenCase source = read_case("adamw");
  CHECK(source.runs().size() >= 5);
  const TemporaryFolder folder;
  for (const auto& device : model_devices()) {
    for (const Value& run : source.runs()) {
      Trained trained(*device, run, kNames);
      train::Optimizer optimizer(trained.parameters, options_of(run));
      std::vector<float> norms;
      for (int step = 0; step < 5; ++step) {
        trained.set_gradients(run, step);
        const train::StepReport report = optimizer.step(rate_of(run), clip_of(run));
        CHECK(!report.skipped);
        CHECK_EQ(report.step, step + 1);
        norms.push_back(static_cast<float>(report.gradient_norm));
        for (const auto& parameter : trained.parameters) {
          const std::string output = "step" + std::to_string(step) + "." + parameter.name;
          check_error(run["name"].text() + " " + output,
                      relative_error(parameter.value, source.golden(run, output)), 1e-6);
          for (const float left : ops::to_host(parameter.gradient)) CHECK_EQ(left, 0.0f);
        }
      }
      // The moments tell a beta2 that went through f32 (1.3e-5); the weights hardly do. An NPU's operator
      // takes no other.
      const double second_moment = device->name().starts_with("ascend") ? 2e-5 : 1e-6;
      const std::string path = folder.path("state");
      optimizer.save(path);
      const auto state = io::open_tensor_file(path);
      for (const std::string& name : kNames) {
        check_error("exp_avg." + name,
                    relative_error(kept(*state, name, "m"), source.golden(run, "exp_avg." + name).values),
                    1e-6);
        check_error("exp_avg_sq." + name,
                    relative_error(kept(*state, name, "v"), source.golden(run, "exp_avg_sq." + name).values),
                    second_moment);
      }
      std::filesystem::remove(path);
      check_error("norms", relative_error(norms, source.golden(run, "gradient_norms").values), 1e-6);
    }
  }
}

TEST("train: the running average of the weights") {
  const GoldenCase source = read_case("ema");
  for (const auto& device : model_devices()) {
    for (const Value& run : source.runs()) {
      const Tensor value = input_tensor(*device, run, "parameter0");
      const Tensor gradient = ops::full(*device, value.shape(), 0);
      train::OptimizerOptions options;
      options.ema_decay = run["decay"].number();
      train::Optimizer optimizer({{"p", value, gradient}}, options);
      for (int step = 1; step <= 5; ++step) {
        const std::vector<float> weights = input_values(run, "parameter" + std::to_string(step));
        device->upload(value, weights.data());
        optimizer.step(0, 0);  // leaves the weights, moves the average
        optimizer.swap_average();
        CHECK(optimizer.average_swapped());
        CHECK_THROWS("ERR_OPTION", optimizer.step(0, 0));
        CHECK_THROWS("ERR_OPTION", optimizer.save("/nowhere/at/all"));
        const std::string output = "average" + std::to_string(step);
        check_error(output, relative_error(value, source.golden(run, output)), 1e-6);
        optimizer.swap_average();
        CHECK(ops::to_host(value) == weights);
      }
    }
  }
  const auto device = cpu_device();
  const Tensor value = ops::full(*device, {2}, 1);
  train::Optimizer plain({{"p", value, ops::full(*device, {2}, 0)}}, {});
  CHECK_THROWS("ERR_OPTION", plain.swap_average());
}

TEST("train: a step that is not finite moves nothing and is told") {
  const GoldenCase source = read_case("adamw");
  const Value run = source.runs()[1];
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto& device : model_devices()) {
    for (const float bad : {std::nanf(""), inf, -inf}) {
      Trained trained(*device, run, kNames), clean(*device, run, kNames);
      train::Optimizer optimizer(trained.parameters, options_of(run)),
          reference(clean.parameters, options_of(run));
      for (int step = 0; step < 3; ++step) {
        trained.set_gradients(run, step);
        clean.set_gradients(run, step);
        if (step == 1) {
          const auto before = trained.values();
          std::vector<float> spoiled = input_values(run, "grad1.bias");
          spoiled[2] = bad;
          device->upload(trained.parameters[1].gradient, spoiled.data());
          const train::StepReport report = optimizer.step(rate_of(run), 1);
          CHECK(report.skipped);
          CHECK(!std::isfinite(report.gradient_norm));
          CHECK_EQ(report.step, 1);
          CHECK(trained.values() == before);
          for (const float left : ops::to_host(trained.parameters[1].gradient)) CHECK_EQ(left, 0.0f);
          continue;
        }
        CHECK(!optimizer.step(rate_of(run), 1).skipped);
        reference.step(rate_of(run), 1);
      }
      CHECK(trained.values() == clean.values());  // as if the skipped step had not been
    }
  }
}

TEST("train: the optimizer's state comes back bit for bit") {
  const GoldenCase source = read_case("adamw");
  const Value run = source.runs()[1];
  const TemporaryFolder folder;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto device = cpu_device();
    train::OptimizerOptions options = options_of(run);
    options.ema_decay = 0.9;
    Trained whole(*device, run, kNames, dtype);
    train::Optimizer first(whole.parameters, options);
    const auto advance = [&](Trained& trained, train::Optimizer& optimizer, int from, int to) {
      for (int step = from; step < to; ++step) {
        trained.set_gradients(run, step);
        optimizer.step(rate_of(run), 1);
      }
    };
    advance(whole, first, 0, 2);
    const std::string path = folder.path("state.safetensors");
    first.save(path);
    CHECK_EQ(folder.names().size(), 1u);
    advance(whole, first, 2, 5);

    Trained again(*device, run, kNames, dtype);
    for (const auto& parameter : again.parameters) ops::fill_(parameter.value, 7);
    train::Optimizer second(again.parameters, options);
    second.load(path);
    CHECK_EQ(second.steps(), 2);
    advance(again, second, 2, 5);
    CHECK(again.values() == whole.values());
    first.swap_average();
    second.swap_average();
    CHECK(again.values() == whole.values());
    first.swap_average();
    second.swap_average();
    first.save(folder.path("a"));
    second.save(folder.path("b"));
    CHECK(read_bytes(folder.path("a")) == read_bytes(folder.path("b")));
    for (const char* name : {"a", "b", "state.safetensors"}) std::filesystem::remove(folder.path(name));
  }
}

TEST("train: files that hold other state are refused and change nothing") {
  const GoldenCase source = read_case("adamw");
  const Value run = source.runs()[0];
  const auto device = cpu_device();
  const TemporaryFolder folder;
  Trained trained(*device, run, kNames);
  train::Optimizer optimizer(trained.parameters, options_of(run));
  const auto before = trained.values();
  const std::string own = folder.path("own");
  optimizer.save(own);

  const auto written = [&](const char* name, const std::vector<std::string>& names, double ema) {
    Trained other(*device, run, names);
    train::OptimizerOptions options;
    options.ema_decay = ema;
    train::Optimizer(other.parameters, options).save(folder.path(name));
    return folder.path(name);
  };
  const auto refused = [&](const std::string& path, const char* code, const char* part) {
    const Error error = error_of([&] { optimizer.load(path); });
    CHECK_EQ(error.code, std::string(code));
    check_told(error, part);
    CHECK(trained.values() == before);
    CHECK_EQ(optimizer.steps(), 0);
  };
  refused(written("fewer", {"weight", "bias"}, 0), "ERR_CHECKPOINT", "norm");
  refused(written("average", kNames, 0.5), "ERR_CHECKPOINT", "expected 9 tensors");

  std::vector<io::TensorToWrite> tensors;
  for (const std::string& name : kNames) {
    for (const char* state : {".master", ".m", ".v"}) {
      const Shape shape = name == "bias" ? Shape{7} : input_shape(run, name);
      tensors.push_back({name + state, DType::f32, shape, [shape](std::byte* to) {
                           std::memset(to, 0, static_cast<std::size_t>(shape.numel()) * sizeof(float));
                         }});
    }
  }
  const std::string other = folder.path("other");
  io::write_safetensors(other, tensors, {{"danceflux.optimizer.steps", "3"}});
  refused(other, "ERR_CHECKPOINT", "bias.master: expected shape [6], got [7]");
  io::write_safetensors(other, tensors, {{"format", "pt"}});
  refused(other, "ERR_CHECKPOINT", "expected optimizer state");
  for (auto& tensor : tensors) {
    if (tensor.name.starts_with("bias")) {
      tensor.shape = {6};
      tensor.fill = [](std::byte* to) { std::memset(to, 0, 6 * sizeof(float)); };
    }
  }
  for (const char* steps : {"", "many", "-1", "3 and more", "99999999999999999999"}) {
    io::write_safetensors(other, tensors, {{"danceflux.optimizer.steps", steps}});
    refused(other, "ERR_CHECKPOINT", "step count");
  }
  const std::string bytes = read_bytes(own);
  refused(folder.write("cut", bytes.substr(0, bytes.size() - 4)), "ERR_SAFETENSORS", "cut");
  refused(folder.path("nowhere"), "ERR_FILE", "nowhere");
  optimizer.load(own);
}

TEST("train: an optimizer without gradients is refused") {
  const auto device = cpu_device();
  CHECK_THROWS("ERR_OPTION", train::Optimizer({{"p", ops::full(*device, {2}, 1), {}}}, {}));
}

}  // namespace
}  // namespace danceflux::test
