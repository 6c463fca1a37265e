#include "addon/tensor_wrap.h"

#include "addon/convert.h"
#include "addon/environment.h"
#include "ops/ops.h"

namespace danceflux::addon {

LiveCounters& live() {
  static auto* counters = new LiveCounters;
  return *counters;
}

void TensorWrap::define(Napi::Env env) {
  Environment::of(env).keep(
      "Tensor",
      DefineClass(
          env, "NativeTensor",
          {InstanceAccessor<&TensorWrap::shape>("shape"), InstanceAccessor<&TensorWrap::dtype>("dtype"),
           InstanceAccessor<&TensorWrap::bytes>("bytes"), InstanceAccessor<&TensorWrap::disposed>("disposed"),
           InstanceMethod<&TensorWrap::download>("download"), InstanceMethod<&TensorWrap::dispose>("dispose"),
           InstanceMethod<&TensorWrap::dispose>(dispose_symbol(env))}));
}

Napi::Value TensorWrap::make(Napi::Env env, const std::shared_ptr<OpenDevice>& device, const Tensor& tensor) {
  Napi::Object object = Environment::of(env).construct("Tensor");
  TensorWrap* wrap = Unwrap(object);
  wrap->device_ = device;
  wrap->tensor_ = tensor;
  wrap->reported_ = static_cast<std::int64_t>(tensor.bytes());
  Napi::MemoryManagement::AdjustExternalMemory(env, wrap->reported_);
  ++live().tensors;
  return object;
}

Tensor TensorWrap::unwrap(const Napi::Value& value, const char* name) {
  require(value.IsObject() && Environment::of(value.Env()).is_instance(value.As<Napi::Object>(), "Tensor"),
          "ERR_ARGUMENT", name, ": expected a tensor handle");
  const Tensor& tensor = Unwrap(value.As<Napi::Object>())->tensor_;
  require(tensor.defined(), "ERR_DISPOSED", name, ": the tensor was disposed");
  return tensor;
}

TensorWrap::TensorWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TensorWrap>(info) {}

TensorWrap::~TensorWrap() {
  if (!tensor_) return;
  ++live().collected;
  let_go(Env());
}

void TensorWrap::let_go(Napi::BasicEnv env) {
  tensor_ = {};
  device_ = nullptr;
  Napi::MemoryManagement::AdjustExternalMemory(env, -reported_);
  --live().tensors;
}

const Tensor& TensorWrap::alive() const {
  require(tensor_.defined(), "ERR_DISPOSED", "tensor: it was disposed");
  return tensor_;
}

Napi::Value TensorWrap::shape(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return from_shape(info.Env(), alive().shape()); });
}

Napi::Value TensorWrap::dtype(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return Napi::String::New(info.Env(), std::string(name_of(alive().dtype()))); });
}

Napi::Value TensorWrap::bytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(),
                 [&] { return Napi::Number::New(info.Env(), static_cast<double>(alive().bytes())); });
}

Napi::Value TensorWrap::disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !tensor_.defined());
}

Napi::Value TensorWrap::download(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Tensor tensor = alive();
    return submit(
        info.Env(), *device_->thread, [tensor] { return ops::to_host(tensor); }, from_floats);
  });
}

void TensorWrap::dispose(const Napi::CallbackInfo& info) {
  if (tensor_) let_go(info.Env());
}

}  // namespace danceflux::addon
