// Recording what a device computes, for comparison with another device: NativeDevice's observe... methods and
// NativeModel.observe (lib/native.ts).
#include <optional>

#include "addon/convert.h"
#include "addon/device_wrap.h"
#include "addon/model_wrap.h"
#include "align/recorder.h"

namespace danceflux::addon {
namespace {

std::optional<align::RecorderOptions> to_options(const Napi::Value& value) {
  if (value.IsNull() || value.IsUndefined()) return std::nullopt;
  const Napi::Object object = to_object(value, "options");
  const std::string summary = to_string(field(object, "summary"), "summary");
  align::RecorderOptions options;
  options.folder = to_string(field(object, "folder"), "folder");
  require(summary == "checksum" || summary == "statistics" || summary == "full", "ERR_ARGUMENT",
          "summary: expected checksum, statistics or full, got ", summary);
  options.summary = summary == "full"         ? align::Summary::full
                    : summary == "statistics" ? align::Summary::statistics
                                              : align::Summary::checksum;
  if (object.Has("shardBytes"))
    options.shard_bytes = static_cast<std::size_t>(to_integer(object.Get("shardBytes"), "shardBytes"));
  return options;
}

align::Recorder& recorder_of(const OpenDevice& device) {
  require(device.recorder != nullptr, "ERR_OPTION",
          "observe: expected a device that records, got one that does not");
  return *device.recorder;
}

}  // namespace

Napi::Value DeviceWrap::observe(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto device = alive();
    auto options = to_options(info[0]);
    std::string level = "stage";
    if (options) {
      level = to_string(field(info[0].As<Napi::Object>(), "level"), "level");
      require(level == "stage" || level == "block" || level == "op", "ERR_ARGUMENT",
              "level: expected stage, block or op, got ", level);
      options->level = level == "op" ? Observer::Level::op : Observer::Level::block;
    }
    return submit(
        info.Env(), *device->thread,
        [device, level, options = std::move(options)] {
          Observer::install(nullptr);
          device->recorder = options ? std::make_shared<align::Recorder>(*options) : nullptr;
          if (level != "stage") Observer::install(device->recorder.get());
        },
        undefined);
  });
}

Napi::Value DeviceWrap::observe_level(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto device = alive();
    const bool looks = info[0].IsString() && to_string(info[0], "level") != "stage";
    return submit(
        info.Env(), *device->thread,
        [device, looks] {
          align::Recorder& recorder = recorder_of(*device);
          Observer::install(looks ? &recorder : nullptr);
        },
        undefined);
  });
}

Napi::Value DeviceWrap::observe_stage(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto device = alive();
    const std::string name = to_string(info[0], "stage");
    const std::string inside = info[1].IsUndefined() ? name : to_string(info[1], "inside");
    return submit(
        info.Env(), *device->thread, [device, name, inside] { recorder_of(*device).stage(name, inside); },
        undefined);
  });
}

Napi::Value DeviceWrap::observe_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto device = alive();
    const std::string name = to_string(info[0], "name"), role = to_string(info[1], "role");
    require(role == "input" || role == "output", "ERR_ARGUMENT", "role: expected input or output, got ",
            role);
    const Tensor tensor = TensorWrap::unwrap(info[2], "tensor");
    std::vector<std::string> rows;
    if (!info[3].IsUndefined()) {
      const Napi::Array numbers = to_array(info[3], "rows");
      for (std::uint32_t i = 0; i < numbers.Length(); ++i)
        rows.push_back(std::to_string(to_integer(numbers.Get(i), "rows")));
      require(tensor.rank() > 0 && static_cast<std::int64_t>(rows.size()) == tensor.dim(0), "ERR_ARGUMENT",
              "rows: expected the number of each row of ", tensor.shape(), ", got ", rows.size());
    }
    return submit(
        info.Env(), *device->thread,
        [device, name, role, tensor, rows] {
          align::Recorder& recorder = recorder_of(*device);
          if (rows.empty()) return recorder.record(name, "stage", role.c_str(), tensor);
          for (std::size_t row = 0; row < rows.size(); ++row)
            recorder.record(name + "." + rows[row], "stage", role.c_str(),
                            tensor.narrow(0, static_cast<std::int64_t>(row), 1));
        },
        undefined);
  });
}

Napi::Value DeviceWrap::observed_lines(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto device = alive();
    const bool last = info[0].IsBoolean() && to_bool(info[0], "flush");
    return submit(
        info.Env(), *device->thread,
        [device, last] {
          align::Recorder& recorder = recorder_of(*device);
          if (last) recorder.flush();
          return std::pair(recorder.take(), recorder.seconds());
        },
        [](Napi::Env env, const std::pair<std::vector<std::string>, double>& told) {
          Napi::Array lines = Napi::Array::New(env, told.first.size());
          for (std::size_t i = 0; i < told.first.size(); ++i)
            lines.Set(static_cast<std::uint32_t>(i), Napi::String::New(env, told.first[i]));
          Napi::Object result = Napi::Object::New(env);
          result.Set("lines", lines);
          result.Set("seconds", told.second);
          return result;
        });
  });
}

Napi::Value model_observe(const Napi::CallbackInfo& info, const ModelHandle& model) {
  const std::string what = to_string(info[0], "what");
  require(what == "value" || what == "gradient", "ERR_ARGUMENT", "what: expected value or gradient, got ",
          what);
  return submit(
      info.Env(), *model.device->thread,
      [model, what] {
        align::Recorder& recorder = recorder_of(*model.device);
        const std::string prefix = model.kind + ".";
        for (const nn::NamedParameter& parameter : model.module->trainable_parameters()) {
          const Tensor tensor = what == "value" ? parameter.value() : parameter.gradient();
          if (tensor) recorder.record(prefix + parameter.name, "parameter", what.c_str(), tensor);
        }
      },
      undefined);
}

}  // namespace danceflux::addon
