#include "nn/layers.h"

#include <numeric>

#include "autograd/observer.h"
#include "core/error.h"

namespace danceflux::nn {
namespace {

Tensor value_or_none(const std::shared_ptr<Parameter>& parameter) {
  return parameter ? parameter->value : Tensor();
}

/// Those who look know the next op by its layer's name.
auto named(const Module& layer, const char* suffix = "") {
  return OpName([&layer, suffix] { return layer.full_name() + suffix; });
}

}  // namespace

// ---- Linear: forward ------------------------------------------------------------------------------------

Linear::Linear(Module& parent, std::string name, std::int64_t in, std::int64_t out, bool bias)
    : Module(parent, std::move(name)), parts_{{"", out}}, in_(in) {
  weight_ = parameter("weight", {out, in}, ParameterKind::matrix);
  if (bias) bias_ = parameter("bias", {out}, ParameterKind::f32);
}

Linear::Linear(Module& parent, std::vector<Part> parts, std::int64_t in, bool bias)
    : Module(parent, ""), parts_(std::move(parts)), in_(in) {
  std::vector<PartShape> weights, biases;
  for (const Part& part : parts_) {
    weights.push_back({join_names(part.name, "weight"), part.rows});
    biases.push_back({join_names(part.name, "bias"), part.rows});
  }
  weight_ = parameter(weights, {in}, ParameterKind::matrix);
  if (bias) bias_ = parameter(biases, {}, ParameterKind::f32);
}

Tensor Linear::operator()(const Tensor& x) const {
  if (!has_adapters()) {
    const auto name = named(*this);
    return ops::linear(x, weight_->value, value_or_none(bias_));
  }
  const std::vector<Tensor> outputs = parts(x);
  return outputs.size() == 1 ? outputs[0] : ops::concat(outputs, x.rank() - 1);
}

Tensor Linear::activated(UnaryOp f, const Tensor& x) const {
  if (has_adapters()) return ops::unary(f, (*this)(x));
  const auto name = named(*this, ".activated");
  return ops::linear_activation(f, x, weight_->value, value_or_none(bias_));
}

std::vector<Tensor> Linear::parts(const Tensor& x) const {
  std::vector<Tensor> outputs = parts_inside(x);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const OpName name([&] { return join_names(full_name(), parts_[i].name); });
    observed("linear", outputs[i], x);
  }
  return outputs;
}

// The parts are what is seen: they are the checkpoint's layers.
std::vector<Tensor> Linear::parts_inside(const Tensor& x) const {
  const Unwatched inside;
  const Tensor y = ops::linear(x, weight_->value, value_or_none(bias_));
  std::vector<Tensor> outputs{y};
  if (parts_.size() > 1) {
    std::vector<std::int64_t> rows;
    for (const Part& part : parts_) rows.push_back(part.rows);
    outputs = ops::split(y, rows, y.rank() - 1);
  }
  if (has_adapters()) add_adapter_effects(outputs, x);
  return outputs;
}

// ---- Linear: adapters -----------------------------------------------------------------------------------

void Linear::add_adapter_effects(std::vector<Tensor>& outputs, const Tensor& x) const {
  const Tensor inner = ops::linear(x, activation(a_->value), {});
  const std::vector<std::int64_t> ranks(adapters_.size(), rank_);
  const std::vector<Tensor> inners =
      adapters_.size() == 1 ? std::vector<Tensor>{inner} : ops::split(inner, ranks, inner.rank() - 1);
  for (std::size_t i = 0; i < adapters_.size(); ++i) {
    Tensor& y = outputs[adapters_[i].part];
    y = ops::add_scaled(y, ops::linear(inners[i], activation(adapters_[i].b->value), {}), scale_);
  }
}

void Linear::add_adapters(const std::vector<std::size_t>& chosen, int rank, float scale) {
  require(!has_adapters(), "ERR_LORA", "lora: expected a layer without adapters, got one that has some");
  require(is_materialized(), "ERR_DEVICE", "lora: expected materialize() to be called first");
  std::vector<PartShape> names;
  for (const std::size_t part : chosen)
    names.push_back({join_names(parts_.at(part).name, "lora_A.weight"), rank});
  a_ = parameter(names, {in_}, ParameterKind::f32);
  for (const std::size_t part : chosen) {
    const std::string name = join_names(parts_[part].name, "lora_B.weight");
    adapters_.push_back({part, parameter(name, {parts_[part].rows, rank}, ParameterKind::f32)});
  }
  rank_ = rank;
  scale_ = scale;
}

void Linear::remove_adapters() {
  if (!has_adapters()) return;
  forget(a_);
  for (const Adapter& adapter : adapters_) forget(adapter.b);
  a_ = nullptr;
  adapters_.clear();
}

void Linear::merge_adapters() {
  const NoRecording quiet;
  std::int64_t row = 0;
  std::vector<std::int64_t> starts;
  for (const Part& part : parts_) {
    starts.push_back(row);
    row += part.rows;
  }
  for (std::size_t i = 0; i < adapters_.size(); ++i) {
    const Part& part = parts_[adapters_[i].part];
    const Tensor a = a_->value.narrow(0, static_cast<std::int64_t>(i) * rank_, rank_);
    const Tensor target = weight_->value.narrow(0, starts[adapters_[i].part], part.rows);
    const Tensor sum =
        ops::add_scaled(ops::cast(target, DType::f32), ops::matmul(adapters_[i].b->value, a), scale_);
    ops::copy_(target, sum);
  }
  remove_adapters();
}

// ---- norms, convolution, tables -------------------------------------------------------------------------

LayerNorm::LayerNorm(Module& parent, std::string name, std::int64_t width, float eps)
    : Module(parent, std::move(name)), eps_(eps) {
  weight_ = parameter("weight", {width}, ParameterKind::f32);
  bias_ = parameter("bias", {width}, ParameterKind::f32);
}

Tensor LayerNorm::operator()(const Tensor& x) const {
  const auto name = named(*this);
  return ops::layer_norm(x, weight_->value, bias_->value, eps_);
}

RmsNorm::RmsNorm(Module& parent, std::string name, std::int64_t width, float eps)
    : Module(parent, std::move(name)), eps_(eps) {
  weight_ = parameter("weight", {width}, ParameterKind::f32);
}

Tensor RmsNorm::operator()(const Tensor& x) const {
  const auto name = named(*this);
  return ops::rms_norm(x, weight_->value, eps_);
}

Tensor RmsNorm::rotated(const Tensor& x, const Tensor& cos, const Tensor& sin) const {
  const auto name = named(*this, ".rotated");
  return ops::qk_norm_rope(x, weight_->value, cos, sin, eps_);
}

GroupNorm::GroupNorm(Module& parent, std::string name, std::int64_t channels, int groups, float eps)
    : Module(parent, std::move(name)), groups_(groups), eps_(eps) {
  require(groups > 0 && channels % groups == 0, "ERR_SHAPE", "group_norm: expected groups that divide ",
          channels, " channels, got ", groups);
  weight_ = parameter("weight", {channels}, ParameterKind::f32);
  bias_ = parameter("bias", {channels}, ParameterKind::f32);
}

Tensor GroupNorm::operator()(const Tensor& x) const {
  const auto name = named(*this);
  return ops::group_norm(x, groups_, weight_->value, bias_->value, eps_);
}

Tensor GroupNorm::silu(const Tensor& x) const {
  const auto name = named(*this, ".silu");
  return ops::group_norm_silu(x, groups_, weight_->value, bias_->value, eps_);
}

Conv2d::Conv2d(Module& parent, std::string name, std::int64_t in, std::int64_t out, int kernel,
               const ConvArgs& args, bool bias)
    : Module(parent, std::move(name)), args_(args) {
  weight_ = parameter("weight", {out, in, kernel, kernel}, ParameterKind::matrix);
  if (bias) bias_ = parameter("bias", {out}, ParameterKind::f32);
}

Tensor Conv2d::operator()(const Tensor& x) const {
  const auto name = named(*this);
  return ops::conv2d(x, weight_->value, value_or_none(bias_), args_);
}

Embedding::Embedding(Module& parent, std::string name, std::int64_t rows, std::int64_t width)
    : Module(parent, std::move(name)) {
  weight_ = parameter("weight", {rows, width}, ParameterKind::matrix);
}

Tensor Embedding::operator()(const TokenIds& ids) const {
  require(static_cast<std::int64_t>(ids.values.size()) == ids.batch * ids.length, "ERR_SHAPE",
          "embedding: expected ", ids.batch, " x ", ids.length, " ids, got ", ids.values.size());
  const auto name = named(*this);
  return ops::embedding(weight_->value, upload({ids.batch, ids.length}, ids.values), ids.values);
}

Tensor Embedding::first(std::int64_t count) const {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  const auto name = named(*this);
  return ops::embedding(weight_->value, upload({count}, ids), ids);
}

}  // namespace danceflux::nn
