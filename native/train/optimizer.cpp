#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace danceflux::train {
namespace {

// PyTorch's clip_grad_norm_ adds this to the norm before it divides.
constexpr double kClipEpsilon = 1e-6;

Tensor f32_copy(const Tensor& x) {
  const Tensor copy = backend_of(x).empty(x.shape(), DType::f32);
  ops::copy_(copy, x);
  return copy;
}

}  // namespace

Optimizer::Optimizer(std::vector<TrainedParameter> parameters, const OptimizerOptions& options)
    : options_(options) {
  for (const TrainedParameter& parameter : parameters) {
    require(parameter.gradient.defined(), "ERR_OPTION", "optimizer: ", parameter.name, " has no gradient");
    own_gradients_.push_back(parameter.gradient);
    const std::int64_t count = parameter.value.numel();
    add_entry(
        {parameter.name, parameter.value.shape(), 0, count, parameter.value.view({count}), {}, {}, {}, {}},
        options);
  }
}

Optimizer::Optimizer(std::shared_ptr<GradientSync> sync, const OptimizerOptions& options)
    : options_(options), sync_(std::move(sync)) {
  for (const TrainedRange& range : sync_->ranges()) {
    const TrainedPart& part = sync_->layout().parts[range.part];
    add_entry({part.name, part.shape, range.begin, range.end, sync_->value(range), {}, {}, {}, {}}, options);
  }
}

void Optimizer::add_entry(Entry entry, const OptimizerOptions& options) {
  const Tensor& value = entry.value;
  entry.m = ops::full(backend_of(value), value.shape(), 0);
  entry.v = ops::full(backend_of(value), value.shape(), 0);
  entry.master = value.dtype() == DType::f32 ? value : f32_copy(value);
  if (options.ema_decay > 0) entry.average = f32_copy(entry.master);
  entries_.push_back(std::move(entry));
}

/// Flat, one per entry; when there is a sync, between its finish() and release().
std::vector<Tensor> Optimizer::gradients() const {
  std::vector<Tensor> all;
  if (sync_) {
    for (const TrainedRange& range : sync_->ranges()) all.push_back(sync_->gradient(range));
  } else {
    for (const Tensor& gradient : own_gradients_) all.push_back(gradient.view({gradient.numel()}));
  }
  return all;
}

void Optimizer::settle() {
  if (sync_) sync_->settle();
}

StepReport Optimizer::step(double learning_rate, double clip_norm) {
  require(!swapped_, "ERR_OPTION",
          "optimizer: the running average is in the weights' place; swap it back first");
  StepReport report;
  // The same number on all ranks, and so the same decision.
  report.gradient_norm = std::sqrt(sync_ ? sync_->finish() : ops::sum_of_squares(own_gradients_));
  report.skipped = !std::isfinite(report.gradient_norm);
  if (!report.skipped) {
    const double scale =
        clip_norm > 0 ? std::min(1.0, clip_norm / (report.gradient_norm + kClipEpsilon)) : 1.0;
    AdamWArgs args{learning_rate,         options_.beta1, options_.beta2,           options_.eps,
                   options_.weight_decay, ++steps_,       static_cast<float>(scale)};
    const std::vector<Tensor> gradient = gradients();
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      const Entry& entry = entries_[i];
      ops::adamw_(entry.value, entry.master, entry.m, entry.v, gradient[i], args);
      if (entry.average) ops::lerp_(entry.average, entry.master, options_.ema_decay);
    }
    publish();
  }
  report.step = steps_;
  for (const Tensor& gradient : own_gradients_) ops::fill_(gradient, 0);
  if (sync_) {
    sync_->release();
    report.sync = sync_->take_report();
  }
  report.state_bytes = state_bytes();
  return report;
}

/// Weights that this rank changed are everybody's.
void Optimizer::publish() {
  if (sync_) sync_->gather_values();
}

/// Weights from masters.
void Optimizer::write_values() {
  for (const Entry& entry : entries_) {
    if (entry.value.dtype() != DType::f32) ops::copy_(entry.value, entry.master);
  }
  publish();
}

void Optimizer::swap_average() {
  require(options_.ema_decay > 0, "ERR_OPTION", "optimizer: no running average is kept (emaDecay is 0)");
  for (const Entry& entry : entries_) {
    const Tensor kept = f32_copy(entry.master);
    ops::copy_(entry.master, entry.average);
    ops::copy_(entry.average, kept);
  }
  write_values();
  swapped_ = !swapped_;
}

std::size_t Optimizer::state_bytes() const {
  std::size_t all = 0;
  for (const Entry& entry : entries_) {
    all += entry.m.bytes() + entry.v.bytes();
    if (entry.average) all += entry.average.bytes();
    if (entry.value.dtype() != DType::f32) all += entry.master.bytes();
  }
  return all;
}

}  // namespace danceflux::train
