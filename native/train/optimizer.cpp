#include "train/optimizer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "core/error.h"
#include "io/safetensors.h"

namespace danceflux::train {
namespace {

// PyTorch's clip_grad_norm_ adds this to the norm before it divides.
constexpr double kClipEpsilon = 1e-6;
constexpr const char* kStepsKey = "danceflux.optimizer.steps";

Tensor zeros_like(const Tensor& x) { return ops::full(backend_of(x), x.shape(), 0); }

Tensor f32_copy(const Tensor& x) {
  const Tensor copy = backend_of(x).empty(x.shape(), DType::f32);
  ops::copy_(copy, x);
  return copy;
}

std::int64_t stored_steps(const io::TensorFile& file) {
  const auto entry = file.metadata().find(kStepsKey);
  require(entry != file.metadata().end(), "ERR_CHECKPOINT", file.path(),
          ": expected optimizer state, got another file");
  const std::string& text = entry->second;
  std::int64_t steps = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), steps);
  require(error == std::errc{} && end == text.data() + text.size() && steps >= 0, "ERR_CHECKPOINT",
          file.path(), ": expected a step count, got \"", text, "\"");
  return steps;
}

}  // namespace

Optimizer::Optimizer(std::vector<TrainedParameter> parameters, const OptimizerOptions& options)
    : options_(options) {
  for (TrainedParameter& parameter : parameters) {
    require(parameter.gradient.defined(), "ERR_OPTION", "optimizer: ", parameter.name, " has no gradient");
    Entry entry{parameter, {}, zeros_like(parameter.gradient), zeros_like(parameter.gradient), {}};
    entry.master = parameter.value.dtype() == DType::f32 ? parameter.value : f32_copy(parameter.value);
    if (options.ema_decay > 0) entry.average = f32_copy(entry.master);
    entries_.push_back(std::move(entry));
  }
}

StepReport Optimizer::step(double learning_rate, double clip_norm) {
  require(!swapped_, "ERR_OPTION",
          "optimizer: the running average is in the weights' place; swap it back first");
  std::vector<Tensor> gradients;
  for (const Entry& entry : entries_) gradients.push_back(entry.parameter.gradient);
  StepReport report;
  report.gradient_norm = std::sqrt(ops::sum_of_squares(gradients));
  report.skipped = !std::isfinite(report.gradient_norm);
  if (!report.skipped) {
    const double scale =
        clip_norm > 0 ? std::min(1.0, clip_norm / (report.gradient_norm + kClipEpsilon)) : 1.0;
    AdamWArgs args{learning_rate,         options_.beta1, options_.beta2,           options_.eps,
                   options_.weight_decay, ++steps_,       static_cast<float>(scale)};
    for (const Entry& entry : entries_) {
      ops::adamw_(entry.parameter.value, entry.master, entry.m, entry.v, entry.parameter.gradient, args);
      if (entry.average) ops::lerp_(entry.average, entry.master, options_.ema_decay);
    }
  }
  report.step = steps_;
  zero_gradients();
  return report;
}

void Optimizer::zero_gradients() {
  for (const Entry& entry : entries_) ops::fill_(entry.parameter.gradient, 0);
}

void Optimizer::swap_average() {
  require(options_.ema_decay > 0, "ERR_OPTION", "optimizer: no running average is kept (emaDecay is 0)");
  for (const Entry& entry : entries_) {
    const Tensor kept = f32_copy(entry.master);
    ops::copy_(entry.master, entry.average);
    ops::copy_(entry.average, kept);
    if (entry.parameter.value.dtype() != DType::f32) ops::copy_(entry.parameter.value, entry.master);
  }
  swapped_ = !swapped_;
}

void Optimizer::for_each_state(const std::function<void(const std::string&, const Tensor&)>& visit) const {
  for (const Entry& entry : entries_) {
    visit(entry.parameter.name + ".master", entry.master);
    visit(entry.parameter.name + ".m", entry.m);
    visit(entry.parameter.name + ".v", entry.v);
    if (entry.average) visit(entry.parameter.name + ".average", entry.average);
  }
}

void Optimizer::save(const std::string& path) const {
  require(!swapped_, "ERR_OPTION",
          "optimizer: the running average is in the weights' place; swap it back before saving");
  std::vector<io::TensorToWrite> tensors;
  for_each_state([&](const std::string& name, const Tensor& state) {
    tensors.push_back(
        {name, DType::f32, state.shape(), [state](std::byte* to) { backend_of(state).download(to, state); }});
  });
  io::write_safetensors(path, std::move(tensors), {{kStepsKey, std::to_string(steps_)}});
}

void Optimizer::load(const std::string& path) {
  const auto file = io::open_tensor_file(path);
  const std::int64_t steps = stored_steps(*file);
  std::map<std::string, const io::FileTensor*> stored;
  for (const io::FileTensor& tensor : file->tensors()) stored.emplace(tensor.name, &tensor);
  // All of it is checked before any of it is taken.
  std::size_t wanted = 0;
  for_each_state([&](const std::string& name, const Tensor& state) {
    const auto found = stored.find(name);
    require(found != stored.end(), "ERR_CHECKPOINT", path, ": expected ", name,
            ", got none: it was written with other trainable parameters or options");
    require(found->second->shape == state.shape(), "ERR_CHECKPOINT", path, ": ", name, ": expected shape ",
            state.shape(), ", got ", found->second->shape);
    ++wanted;
  });
  require(wanted == stored.size(), "ERR_CHECKPOINT", path, ": expected ", wanted, " tensors, got ",
          stored.size(), ": it was written with other trainable parameters or options");
  for_each_state([&](const std::string& name, const Tensor& state) {
    std::vector<float> host(static_cast<std::size_t>(state.numel()));
    io::read_rows(*stored.at(name), 0, -1, false, DType::f32, host.data());
    backend_of(state).upload(state, host.data());
  });
  for (const Entry& entry : entries_) {
    if (entry.parameter.value.dtype() != DType::f32) ops::copy_(entry.parameter.value, entry.master);
  }
  steps_ = steps;
  swapped_ = false;
}

}  // namespace danceflux::train
