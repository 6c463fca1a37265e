// Making models and optimizers: what a device's create... methods call.
#pragma once
#include <napi.h>

#include <memory>

#include "addon/tensor_wrap.h"

namespace danceflux::addon {

struct ModelHandle;

/// Registers the classes of all models and of the optimizer.
void define_models(Napi::Env env);
void define_flux(Napi::Env env);
void define_encoders(Napi::Env env);
void define_vae(Napi::Env env);
void define_optimizer(Napi::Env env);

using DevicePointer = std::shared_ptr<OpenDevice>;
Napi::Value make_flux(const Napi::CallbackInfo& info, const DevicePointer& device);
Napi::Value make_t5(const Napi::CallbackInfo& info, const DevicePointer& device);
Napi::Value make_clip_text(const Napi::CallbackInfo& info, const DevicePointer& device);
Napi::Value make_clip(const Napi::CallbackInfo& info, const DevicePointer& device);
Napi::Value make_vae(const Napi::CallbackInfo& info, const DevicePointer& device);
Napi::Value make_optimizer(const Napi::CallbackInfo& info, const DevicePointer& device);

/// The transformer behind a handle, or null: what an optimizer is made for.
const ModelHandle* flux_handle(const Napi::Object& object);

}  // namespace danceflux::addon
