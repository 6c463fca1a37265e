// Devices that JavaScript holds.
#pragma once
#include <napi.h>

#include <memory>

#include "addon/tensor_wrap.h"

namespace danceflux::addon {

class DeviceWrap : public Napi::ObjectWrap<DeviceWrap> {
 public:
  static void define(Napi::Env env);
  /// openDevice(name, optionsJson)
  static Napi::Value open(const Napi::CallbackInfo& info);

  explicit DeviceWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceWrap>(info) {}
  ~DeviceWrap() override;

 private:
  Napi::Value name(const Napi::CallbackInfo& info);
  Napi::Value description(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  void reset_peak_memory(const Napi::CallbackInfo& info);
  Napi::Value trim(const Napi::CallbackInfo& info);
  Napi::Value declined(const Napi::CallbackInfo& info);
  void set_strict_shortcuts(const Napi::CallbackInfo& info);
  Napi::Value upload(const Napi::CallbackInfo& info);
  Napi::Value noise(const Napi::CallbackInfo& info);
  Napi::Value to_rgb8(const Napi::CallbackInfo& info);
  Napi::Value create_flux(const Napi::CallbackInfo& info);
  Napi::Value create_t5(const Napi::CallbackInfo& info);
  Napi::Value create_clip_text(const Napi::CallbackInfo& info);
  Napi::Value create_clip(const Napi::CallbackInfo& info);
  Napi::Value create_vae(const Napi::CallbackInfo& info);
  Napi::Value create_optimizer(const Napi::CallbackInfo& info);
  Napi::Value create_communicator(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);
  const std::shared_ptr<OpenDevice>& alive() const;

  std::shared_ptr<OpenDevice> device_;
};

}  // namespace danceflux::addon
