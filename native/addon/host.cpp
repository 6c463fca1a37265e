#include "addon/host.h"

#include "addon/convert.h"
#include "addon/environment.h"
#include "addon/tensor_wrap.h"
#include "backend/registry.h"
#include "core/philox.h"
#include "core/torch_random.h"
#include "io/tensor_file.h"

namespace danceflux::addon {

class TorchGeneratorWrap : public Napi::ObjectWrap<TorchGeneratorWrap> {
 public:
  static void define(Napi::Env env) {
    Environment::of(env).keep("TorchGenerator",
                              DefineClass(env, "NativeTorchGenerator",
                                          {InstanceMethod<&TorchGeneratorWrap::randn>("randn"),
                                           InstanceMethod<&TorchGeneratorWrap::randperm>("randperm")}));
  }
  static Napi::Value create(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::uint64_t seed = to_u64(info[0], "seed");
      Napi::Object object = Environment::of(info.Env()).construct("TorchGenerator");
      Unwrap(object)->generator_ = TorchGenerator(seed);
      return object;
    });
  }
  explicit TorchGeneratorWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TorchGeneratorWrap>(info) {}

 private:
  static std::size_t count_of(const Napi::Value& value) {
    const std::int64_t count = to_integer(value, "count");
    require(count >= 0 && count <= 0x7fffffff, "ERR_ARGUMENT", "count: expected 0 to 2^31 - 1, got ", count);
    return static_cast<std::size_t>(count);
  }
  template <class Array, class Number>
  Napi::Value draw(Napi::Env env, std::size_t count) {
    Array array = Array::New(env, count);
    generator_.randn(std::span<Number>(array.Data(), count));
    return array;
  }
  Napi::Value randn(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const std::size_t count = count_of(info[0]);
      const std::string dtype = to_string(info[1], "dtype");
      require(dtype == "f32" || dtype == "f64", "ERR_ARGUMENT", "dtype: expected f32 or f64, got ", dtype);
      if (dtype == "f64") return draw<Napi::Float64Array, double>(info.Env(), count);
      return draw<Napi::Float32Array, float>(info.Env(), count);
    });
  }
  Napi::Value randperm(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const auto order = generator_.randperm(static_cast<std::int32_t>(count_of(info[0])));
      Napi::Int32Array array = Napi::Int32Array::New(info.Env(), order.size());
      std::copy(order.begin(), order.end(), array.Data());
      return array;
    });
  }

  TorchGenerator generator_{0};
};

namespace {

Napi::Value keyed_normal_js(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const NoiseKey key = to_noise_key(info[0]);
    const std::int64_t count = to_integer(info[1], "count");
    require(count >= 0 && count <= 0x7fffffff, "ERR_ARGUMENT", "count: expected 0 to 2^31 - 1, got ", count);
    Napi::Float32Array array = Napi::Float32Array::New(info.Env(), static_cast<std::size_t>(count));
    keyed_normal(key, {array.Data(), array.ElementLength()});
    return array;
  });
}

Napi::Value inspect_file(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto file = io::open_tensor_file(to_string(info[0], "path"));
    Napi::Array tensors = Napi::Array::New(info.Env());
    for (const io::FileTensor& tensor : file->tensors()) {
      Napi::Object entry = Napi::Object::New(info.Env());
      entry.Set("name", tensor.name);
      entry.Set("dtype", tensor.dtype_name);
      entry.Set("shape", from_shape(info.Env(), tensor.shape));
      tensors.Set(tensors.Length(), entry);
    }
    Napi::Object metadata = Napi::Object::New(info.Env());
    for (const auto& [key, value] : file->metadata()) metadata.Set(key, value);
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("tensors", tensors);
    result.Set("metadata", metadata);
    return result;
  });
}

Napi::Value read_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const auto file = io::open_tensor_file(to_string(info[0], "path"));
    const io::FileTensor& tensor = file->find(to_string(info[1], "name"));
    Napi::Float32Array values =
        Napi::Float32Array::New(info.Env(), static_cast<std::size_t>(tensor.shape.numel()));
    io::read_rows(tensor, 0, -1, false, DType::f32, values.Data());
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("shape", from_shape(info.Env(), tensor.shape));
    result.Set("values", values);
    return result;
  });
}

Napi::Value probe(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    Napi::Array reports = Napi::Array::New(info.Env());
    for (const BackendReport& report : probe_backends()) {
      Napi::Object entry = Napi::Object::New(info.Env());
      entry.Set("name", report.name);
      entry.Set("state", report.state);
      entry.Set("devices", report.devices);
      entry.Set("message", report.message);
      entry.Set("hint", report.hint);
      entry.Set("collectives", report.collectives);
      reports.Set(reports.Length(), entry);
    }
    return reports;
  });
}

Napi::Value live_handles(const Napi::CallbackInfo& info) {
  Napi::Object counts = Napi::Object::New(info.Env());
  counts.Set("tensors", static_cast<double>(live().tensors));
  counts.Set("models", static_cast<double>(live().models));
  counts.Set("optimizers", static_cast<double>(live().optimizers));
  counts.Set("communicators", static_cast<double>(live().communicators));
  counts.Set("devices", static_cast<double>(live().devices));
  counts.Set("collected", static_cast<double>(live().collected));
  return counts;
}

void shutdown(const Napi::CallbackInfo&) { DeviceThread::stop_all(); }

}  // namespace

void define_host_functions(Napi::Env env, Napi::Object exports) {
  TorchGeneratorWrap::define(env);
  exports.Set("createTorchGenerator", Napi::Function::New<&TorchGeneratorWrap::create>(env));
  exports.Set("keyedNormal", Napi::Function::New<&keyed_normal_js>(env));
  exports.Set("inspectFile", Napi::Function::New<&inspect_file>(env));
  exports.Set("readTensor", Napi::Function::New<&read_tensor>(env));
  exports.Set("probeBackends", Napi::Function::New<&probe>(env));
  exports.Set("liveHandles", Napi::Function::New<&live_handles>(env));
  exports.Set("shutdown", Napi::Function::New<&shutdown>(env));
}

}  // namespace danceflux::addon
