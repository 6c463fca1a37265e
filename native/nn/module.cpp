#include "nn/module.h"

#include <atomic>

#include "core/error.h"
#include "ops/ops.h"

namespace danceflux::nn {
namespace {
std::atomic<std::uint64_t> layout_changes{0};  // of all modules
}

std::string join_names(const std::string& prefix, const std::string& name) {
  if (prefix.empty()) return name;
  return name.empty() ? prefix : prefix + "." + name;
}

Tensor upload_beside(const Tensor& beside, const Shape& shape, std::span<const float> values) {
  return ops::from_host(backend_of(beside), shape, values);
}

Tensor NamedParameter::value() const { return parameter->value.narrow(0, row, rows).view(shape); }

Tensor NamedParameter::gradient() const {
  return parameter->gradient ? parameter->gradient.narrow(0, row, rows).view(shape) : Tensor();
}

// ---- the tree -------------------------------------------------------------------------------------------

Module::Module(Module& parent, std::string name) : parent_(&parent), name_(std::move(name)) {
  parent.children_.push_back({name_, this});
}

std::string Module::full_name() const { return parent_ ? join_names(parent_->full_name(), name_) : name_; }

std::shared_ptr<Parameter> Module::parameter(std::string name, const Shape& shape, ParameterKind kind) {
  Shape tail;
  for (int axis = 1; axis < shape.rank(); ++axis) tail.push_back(shape[axis]);
  return parameter({{std::move(name), shape[0]}}, tail, kind);
}

std::shared_ptr<Parameter> Module::parameter(const std::vector<PartShape>& parts, const Shape& tail,
                                             ParameterKind kind) {
  Stored stored{std::make_shared<Parameter>(), {}};
  std::int64_t rows = 0;
  for (const PartShape& part : parts) {
    stored.parts.push_back({part.name, rows, part.rows});
    rows += part.rows;
  }
  stored.parameter->shape = {rows};
  for (const std::int64_t dim : tail) stored.parameter->shape.push_back(dim);
  stored.parameter->kind = kind;
  stored_.push_back(stored);
  if (device_) allocate(*stored.parameter);
  return stored.parameter;
}

void Module::forget(const std::shared_ptr<Parameter>& parameter) {
  ++layout_changes;
  std::erase_if(stored_, [&](const Stored& stored) { return stored.parameter == parameter; });
}

void Module::walk(const std::string& prefix,
                  const std::function<void(const std::string& name, Module&)>& visit) {
  visit(prefix, *this);
  for (const Child& child : children_) child.module->walk(join_names(prefix, child.name), visit);
}

void Module::for_each_part(const std::string& prefix, const PartVisitor& visit) {
  walk(prefix, [&](const std::string& name, Module& module) {
    for (Stored& stored : module.stored_) {
      for (Part& part : stored.parts) visit(join_names(name, part.name), stored, part);
    }
  });
}

// The walk itself changes nothing; what `visit` may do is up to the caller, which is const where this is
// called.
void Module::for_each_part(const PartVisitor& visit) const {
  const_cast<Module*>(this)->for_each_part({}, visit);
}

void Module::for_each_stored(const std::function<void(Parameter&)>& visit) const {
  const_cast<Module*>(this)->walk({}, [&](const std::string&, Module& module) {
    for (Stored& stored : module.stored_) visit(*stored.parameter);
  });
}

std::vector<NamedParameter> Module::named_parameters() const {
  std::vector<NamedParameter> all;
  for_each_part([&](const std::string& name, Stored& stored, Part& part) {
    Shape shape = stored.parameter->shape;
    shape[0] = part.rows;
    all.push_back({name, stored.parameter, shape, part.row, part.rows, part.trainable});
  });
  return all;
}

std::vector<NamedParameter> Module::trainable_parameters() const {
  std::vector<NamedParameter> all = named_parameters();
  std::erase_if(all, [](const NamedParameter& named) { return !named.trainable; });
  return all;
}

std::size_t Module::parameter_count() const {
  std::size_t count = 0;
  for_each_stored([&](Parameter& parameter) { count += static_cast<std::size_t>(parameter.shape.numel()); });
  return count;
}

// ---- where they live ------------------------------------------------------------------------------------

void Module::allocate(Parameter& parameter) const {
  ++layout_changes;
  const DType dtype = parameter.kind == ParameterKind::matrix ? storage_ : DType::f32;
  parameter.value = device_->empty(parameter.shape, dtype);
  parameter.gradient = {};
}

void Module::materialize(Backend& device, DType storage) {
  require(is_float(storage) && storage != DType::f64, "ERR_DTYPE",
          "materialize: expected a storage dtype of f32, bf16 or f16, got ", name_of(storage));
  walk({}, [&](const std::string&, Module& module) {
    module.device_ = &device;
    module.storage_ = storage;
    for (Stored& stored : module.stored_) {
      module.allocate(*stored.parameter);
      for (Part& part : stored.parts) part.loaded = false;
    }
  });
}

std::vector<std::string> Module::missing() const {
  std::vector<std::string> names;
  for_each_part([&](const std::string& name, Stored&, Part& part) {
    if (!part.loaded) names.push_back(name);
  });
  return names;
}

Backend& Module::device() const {
  require(device_ != nullptr, "ERR_DEVICE", "module: expected materialize() to be called first");
  return *device_;
}

std::uint64_t Module::layout() const {
  std::uint64_t hash = layout_changes;  // an address may come again, with other meaning
  for_each_stored([&](const Parameter& parameter) {
    hash = (hash ^ reinterpret_cast<std::uintptr_t>(parameter.value.address())) * 0x100000001b3;  // FNV-1a
  });
  return hash;
}

DType Module::activation_dtype() const { return device().activation_dtype(storage_); }

Tensor Module::upload(const Shape& shape, std::span<const float> values) const {
  return ops::from_host(device(), shape, values);
}

Tensor Module::upload(const Shape& shape, std::span<const std::int32_t> values) const {
  return ops::from_host(device(), shape, values);
}

Tensor Module::activation(const Tensor& x) const {
  const DType dtype = activation_dtype();
  return x.dtype() == dtype ? x : ops::cast(x, dtype);
}

// ---- which of them train --------------------------------------------------------------------------------

void Module::set_trainable(const std::function<bool(const std::string& name)>& wanted) {
  for_each_stored([](Parameter& parameter) { parameter.trainable = false; });
  for_each_part([&](const std::string& name, Stored& stored, Part& part) {
    part.trainable = wanted(name);
    stored.parameter->trainable = stored.parameter->trainable || part.trainable;
  });
  for_each_stored([](Parameter& parameter) {
    if (!parameter.trainable) parameter.gradient = {};
  });
}

void Module::watch(Tape& tape, const BackwardMarks& marks) {
  Backend& on = device();
  const auto keeper = keeper_.lock();
  if (keeper) keeper->begin(marks);
  for_each_stored([&](Parameter& parameter) {
    if (!parameter.trainable) return;
    if (keeper) {
      tape.watch(parameter.value, {[keeper, &parameter] { return keeper->memory(parameter); },
                                   [keeper, &parameter] { keeper->finished(parameter); }});
      return;
    }
    if (!parameter.gradient) {
      parameter.gradient = on.empty(parameter.shape, DType::f32);
      ops::fill_(parameter.gradient, 0);
    }
    tape.watch(parameter.value, parameter.gradient);
  });
}

void Module::zero_gradients() {
  if (const auto keeper = keeper_.lock()) keeper->clear();
  for_each_stored([](Parameter& parameter) {
    if (parameter.gradient) ops::fill_(parameter.gradient, 0);
  });
}

void Module::free_gradients() {
  for_each_stored([](Parameter& parameter) { parameter.gradient = {}; });
}

}  // namespace danceflux::nn
