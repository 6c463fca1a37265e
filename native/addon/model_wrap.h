// Models that JavaScript holds: what all of them can do; the rest is in flux_wrap, encoder_wrap and vae_wrap.
#pragma once
#include <napi.h>

#include <memory>
#include <string>
#include <vector>

#include "addon/convert.h"
#include "addon/environment.h"
#include "addon/tensor_wrap.h"
#include "nn/module.h"

namespace danceflux::addon {

/// A model on a device. The module is made and changed on the device's thread only, once the first job has
/// run.
struct ModelHandle {
  std::shared_ptr<OpenDevice> device;
  std::shared_ptr<nn::Module> module;
  std::string kind;
  DType weights = DType::f32;
};

// The methods of NativeModel (lib/native.ts), on any model.
Napi::Value model_parameters(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_missing(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_load(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_set_trainable(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_zero_gradients(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_read(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_write(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_save(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_add_lora(const Napi::CallbackInfo& info, const ModelHandle& model);
Napi::Value model_observe(const Napi::CallbackInfo& info, const ModelHandle& model);

/// A new model of `config` on `device`, its numbers not yet there; info[1] is the storage dtype of its
/// matrices.
template <class Model, class Config>
ModelHandle make_handle(const Napi::CallbackInfo& info, const std::shared_ptr<OpenDevice>& device,
                        const char* kind, const Config& config) {
  const DType weights = dtype_from_name(to_string(info[1], "weights"));
  auto module = std::make_shared<Model>(config);
  module->materialize(*device->backend, weights);
  return {device, module, kind, weights};
}

/// The wrap of one kind of model. `Derived` adds the methods of its kind in own_methods().
template <class Derived, class Model>
class ModelWrap : public Napi::ObjectWrap<Derived> {
 public:
  using Base = ModelWrap;
  explicit ModelWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Derived>(info) {}
  ~ModelWrap() override {
    if (!handle_) return;
    ++live().collected;
    --live().models;
  }

  static void define(Napi::Env env, const char* class_name) {
    using Method = Napi::Value (Derived::*)(const Napi::CallbackInfo&);
    std::vector<Napi::ClassPropertyDescriptor<Derived>> methods = Derived::own_methods();
    const auto add = [&](const char* name, Method method) {
      methods.push_back(Derived::InstanceMethod(name, method));
    };
    add("parameters", &ModelWrap::template common<model_parameters>);
    add("missing", &ModelWrap::template common<model_missing>);
    add("load", &ModelWrap::template common<model_load>);
    add("setTrainable", &ModelWrap::template common<model_set_trainable>);
    add("zeroGradients", &ModelWrap::template common<model_zero_gradients>);
    add("read", &ModelWrap::template common<model_read>);
    add("write", &ModelWrap::template common<model_write>);
    add("save", &ModelWrap::template common<model_save>);
    add("addLora", &ModelWrap::template common<model_add_lora>);
    add("observe", &ModelWrap::template common<model_observe>);
    add("dispose", &ModelWrap::dispose);
    const Method dispose = &ModelWrap::dispose;
    methods.push_back(Derived::InstanceMethod(dispose_symbol(env), dispose));
    const Method kind = &ModelWrap::kind;
    methods.push_back(Derived::InstanceAccessor("kind", kind, nullptr));
    Environment::of(env).keep(class_name, Napi::ObjectWrap<Derived>::DefineClass(env, class_name, methods));
  }

  static Napi::Value make(Napi::Env env, const char* class_name, ModelHandle handle) {
    Napi::Object object = Environment::of(env).construct(class_name);
    Napi::ObjectWrap<Derived>::Unwrap(object)->handle_ = std::make_shared<ModelHandle>(std::move(handle));
    ++live().models;
    return object;
  }

  const ModelHandle& alive() const {
    require(handle_ != nullptr, "ERR_DISPOSED", "model: it was disposed");
    return *handle_;
  }

 protected:
  /// The model itself; keep it alive by capturing the result in a job.
  std::shared_ptr<Model> model() const { return std::static_pointer_cast<Model>(alive().module); }
  /// Runs work(Model&) -> Result as a job.
  template <class Work, class Convert>
  Napi::Value run(Napi::Env env, Work work, Convert convert) const {
    auto target = model();
    return submit(
        env, *alive().device->thread, [target, work = std::move(work)] { return work(*target); }, convert);
  }
  /// Converts a job's tensor to a handle.
  auto as_handle() const {
    return [device = alive().device](Napi::Env env, const Tensor& tensor) {
      return TensorWrap::make(env, device, tensor);
    };
  }

 public:  // for the method table
  template <Napi::Value (*method)(const Napi::CallbackInfo&, const ModelHandle&)>
  Napi::Value common(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const ModelHandle held =
          alive();  // reading the arguments may run JavaScript, which may dispose this handle
      return method(info, held);
    });
  }
  Napi::Value kind(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return Napi::String::New(info.Env(), alive().kind); });
  }
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    if (handle_) --live().models;
    handle_ = nullptr;
    return info.Env().Undefined();
  }

 private:
  std::shared_ptr<ModelHandle> handle_;
};

}  // namespace danceflux::addon
