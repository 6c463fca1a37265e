#include "addon/device_wrap.h"

#include <utility>

#include "addon/communicator_wrap.h"
#include "addon/convert.h"
#include "addon/environment.h"
#include "addon/models.h"
#include "backend/registry.h"
#include "models/latents.h"
#include "ops/ops.h"
#include "train/flow_policy.h"

namespace danceflux::addon {
namespace {

// "cuda:1" -> cuda, 1; "cpu" -> cpu, 0.
std::pair<std::string, int> split_name(const std::string& name) {
  const std::size_t colon = name.find(':');
  if (colon == std::string::npos) return {name, 0};
  const std::string digits = name.substr(colon + 1);
  require(!digits.empty() && digits.size() < 6 && digits.find_first_not_of("0123456789") == std::string::npos,
          "ERR_DEVICE", "device: expected a name such as cpu, cuda:0 or ascend:1, got \"", name, "\"");
  return {name.substr(0, colon), std::stoi(digits)};
}

}  // namespace

void DeviceWrap::define(Napi::Env env) {
  using W = DeviceWrap;
  Environment::of(env).keep("Device",
                            DefineClass(env, "NativeDevice",
                                        {InstanceAccessor<&W::name>("name"),
                                         InstanceAccessor<&W::description>("description"),
                                         InstanceMethod<&W::memory>("memory"),
                                         InstanceMethod<&W::reset_peak_memory>("resetPeakMemory"),
                                         InstanceMethod<&W::trim>("trim"),
                                         InstanceMethod<&W::declined>("declined"),
                                         InstanceMethod<&W::set_strict_shortcuts>("setStrictShortcuts"),
                                         InstanceMethod<&W::upload>("upload"),
                                         InstanceMethod<&W::noise>("noise"),
                                         InstanceMethod<&W::to_rgb8>("toRgb8"),
                                         InstanceMethod<&W::create_flux>("createFlux"),
                                         InstanceMethod<&W::create_t5>("createT5"),
                                         InstanceMethod<&W::create_clip_text>("createClipText"),
                                         InstanceMethod<&W::create_clip>("createClip"),
                                         InstanceMethod<&W::create_vae>("createVae"),
                                         InstanceMethod<&W::create_optimizer>("createOptimizer"),
                                         InstanceMethod<&W::create_communicator>("createCommunicator"),
                                         InstanceMethod<&W::observe>("observe"),
                                         InstanceMethod<&W::observe_level>("observeLevel"),
                                         InstanceMethod<&W::observe_stage>("observeStage"),
                                         InstanceMethod<&W::observe_tensor>("observeTensor"),
                                         InstanceMethod<&W::observed_lines>("observed"),
                                         InstanceMethod<&W::dispose>("dispose"),
                                         InstanceMethod<&W::dispose>(dispose_symbol(env))}));
}

Napi::Value DeviceWrap::open(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto [backend, index] = split_name(to_string(info[0], "device"));
    auto device = std::make_shared<OpenDevice>();
    device->backend = open_backend(backend, index, to_string(info[1], "options"));
    device->thread = std::make_shared<DeviceThread>();
    Napi::Object object = Environment::of(info.Env()).construct("Device");
    Unwrap(object)->device_ = std::move(device);
    ++live().devices;
    return object;
  });
}

DeviceWrap::~DeviceWrap() {
  if (!device_) return;
  ++live().collected;
  --live().devices;
}

const std::shared_ptr<OpenDevice>& DeviceWrap::alive() const {
  require(device_ != nullptr, "ERR_DISPOSED", "device: it was disposed");
  return device_;
}

Napi::Value DeviceWrap::name(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::String::New(info.Env(), alive()->backend->name()); });
}

Napi::Value DeviceWrap::description(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return Napi::String::New(info.Env(), alive()->backend->description()); });
}

Napi::Value DeviceWrap::memory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Backend& backend = *alive()->backend;
    const MemoryStats stats = backend.memory();
    Napi::Object report = Napi::Object::New(info.Env());
    report.Set("used", static_cast<double>(stats.used));
    report.Set("peak", static_cast<double>(stats.peak));
    report.Set("held", static_cast<double>(stats.held));
    if (const auto free = backend.free_memory()) report.Set("free", static_cast<double>(*free));
    report.Set("allocations", static_cast<double>(stats.allocations));
    report.Set("systemAllocations", static_cast<double>(stats.system_allocations));
    return report;
  });
}

void DeviceWrap::reset_peak_memory(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { alive()->backend->reset_peak(); });
}

Napi::Value DeviceWrap::trim(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto device = alive();
    return submit(
        info.Env(), *device->thread, [device] { device->backend->trim(); }, undefined);
  });
}

Napi::Value DeviceWrap::declined(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Napi::Object counts = Napi::Object::New(info.Env());
    for (const auto& [reason, count] : alive()->backend->declined())
      counts.Set(reason, static_cast<double>(count));
    return counts;
  });
}

void DeviceWrap::set_strict_shortcuts(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] { alive()->backend->strict_shortcuts = to_bool(info[0], "strict"); });
}

Napi::Value DeviceWrap::upload(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto device = alive();
    auto values = to_floats(info[0], "values");
    const Shape shape = to_shape(info[1], "shape");
    require(shape.numel() == static_cast<std::int64_t>(values.size()), "ERR_SHAPE", "upload: expected ",
            shape.numel(), " values for ", shape, ", got ", values.size());
    return submit(
        info.Env(), *device->thread,
        [device, shape, values = std::move(values)] {
          return ops::from_host(*device->backend, shape, values);
        },
        [device](Napi::Env env, const Tensor& tensor) { return TensorWrap::make(env, device, tensor); });
  });
}

Napi::Value DeviceWrap::noise(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto device = alive();
    auto keys = to_noise_keys(info[0]);
    const Shape dims = to_shape(info[1], "shape");
    return submit(
        info.Env(), *device->thread,
        [device, dims, keys = std::move(keys)] { return train::keyed_noise(*device->backend, keys, dims); },
        [device](Napi::Env env, const Tensor& tensor) { return TensorWrap::make(env, device, tensor); });
  });
}

Napi::Value DeviceWrap::to_rgb8(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Tensor images = TensorWrap::unwrap(info[0], "images");
    return submit(
        info.Env(), *alive()->thread, [images] { return models::to_rgb8(images); },
        [](Napi::Env env, const std::vector<std::uint8_t>& bytes) {
          Napi::Uint8Array array = Napi::Uint8Array::New(env, bytes.size());
          std::copy(bytes.begin(), bytes.end(), array.Data());
          return array;
        });
  });
}

// Each keeps the device: reading the arguments may run JavaScript, which may dispose this handle.
Napi::Value DeviceWrap::create_flux(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return make_flux(info, DevicePointer(alive())); });
}

Napi::Value DeviceWrap::create_t5(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return make_t5(info, DevicePointer(alive())); });
}

Napi::Value DeviceWrap::create_clip_text(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return make_clip_text(info, DevicePointer(alive())); });
}

Napi::Value DeviceWrap::create_clip(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return make_clip(info, DevicePointer(alive())); });
}

Napi::Value DeviceWrap::create_vae(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return make_vae(info, DevicePointer(alive())); });
}

Napi::Value DeviceWrap::create_optimizer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return make_optimizer(info, DevicePointer(alive())); });
}

Napi::Value DeviceWrap::create_communicator(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] { return make_communicator(info, DevicePointer(alive())); });
}

void DeviceWrap::dispose(const Napi::CallbackInfo&) {
  if (!device_) return;
  for (const auto& stop : std::exchange(device_->at_end, {})) stop();
  device_->thread->stop();
  device_ = nullptr;
  --live().devices;
}

}  // namespace danceflux::addon
