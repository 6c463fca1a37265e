// Tensor handles that JavaScript holds.
#pragma once
#include <napi.h>

#include <functional>
#include <memory>
#include <vector>

#include "addon/job.h"
#include "backend/backend.h"

namespace danceflux::addon {

/// An opened device: its thread and its backend. Shared by every handle made on it.
struct OpenDevice {
  std::shared_ptr<Backend> backend;
  std::shared_ptr<DeviceThread> thread;
  /// What else must stop when the device is disposed, on the JavaScript thread that does it.
  std::vector<std::function<void()>> at_end;
};

/// How many handles are alive, process-wide, and how many the garbage collector had to clean up.
struct LiveCounters {
  std::atomic<std::int64_t> tensors{0}, models{0}, optimizers{0}, communicators{0}, devices{0}, collected{0};
};
LiveCounters& live();

class TensorWrap : public Napi::ObjectWrap<TensorWrap> {
 public:
  static void define(Napi::Env env);
  /// A JavaScript handle of `tensor`.
  static Napi::Value make(Napi::Env env, const std::shared_ptr<OpenDevice>& device, const Tensor& tensor);
  /// The tensor of a handle. Throws ERR_ARGUMENT for anything else, ERR_DISPOSED after dispose().
  static Tensor unwrap(const Napi::Value& value, const char* name);

  explicit TensorWrap(const Napi::CallbackInfo& info);
  ~TensorWrap() override;

 private:
  Napi::Value shape(const Napi::CallbackInfo& info);
  Napi::Value dtype(const Napi::CallbackInfo& info);
  Napi::Value bytes(const Napi::CallbackInfo& info);
  Napi::Value disposed(const Napi::CallbackInfo& info);
  Napi::Value download(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);
  const Tensor& alive() const;
  void let_go(Napi::BasicEnv env);

  std::shared_ptr<OpenDevice> device_;
  Tensor tensor_;
  std::int64_t reported_ = 0;  // bytes told to the garbage collector
};

}  // namespace danceflux::addon
