// Measures of bytes that JavaScript holds: the same code that measures on a device's thread.
#include <cmath>
#include <exception>
#include <utility>

#include "addon/convert.h"
#include "addon/host.h"
#include "align/measure.h"
#include "align/measure_together.h"

namespace danceflux::addon {
namespace {

struct Bytes {
  const std::uint8_t* data;
  std::size_t count;
};

Bytes to_bytes(const Napi::Value& value, const char* name) {
  require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array,
          "ERR_ARGUMENT", name, ": expected a Uint8Array");
  const auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}

std::size_t elements_of(const Bytes& bytes, DType dtype, const char* name) {
  const std::size_t size = size_of(dtype);
  require(bytes.count % size == 0 && reinterpret_cast<std::uintptr_t>(bytes.data) % size == 0, "ERR_ARGUMENT",
          name, ": expected whole, aligned elements of ", danceflux::name_of(dtype), ", got ", bytes.count,
          " bytes");
  return bytes.count / size;
}

/// Gathers a Measure over calls of add(bytes).
class MeasureWrap : public Napi::ObjectWrap<MeasureWrap> {
 public:
  explicit MeasureWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<MeasureWrap>(info) {}
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "NativeMeasure",
        {InstanceMethod<&MeasureWrap::add>("add"), InstanceMethod<&MeasureWrap::result>("result")});
  }

 private:
  Napi::Value add(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Bytes bytes = to_bytes(info[0], "data");
      const DType dtype = dtype_from_name(to_string(info[1], "dtype"));
      measure_.add(bytes.data, dtype, elements_of(bytes, dtype, "data"));
      return info.Env().Undefined();
    });
  }
  Napi::Value result(const Napi::CallbackInfo& info) {
    Napi::Object object = Napi::Object::New(info.Env());
    const bool any = measure_.count > measure_.nan + measure_.inf;
    object.Set("count", static_cast<double>(measure_.count));
    object.Set("nan", static_cast<double>(measure_.nan));
    object.Set("inf", static_cast<double>(measure_.inf));
    object.Set("min", any ? measure_.min : 0);
    object.Set("max", any ? measure_.max : 0);
    object.Set("mean",
               any ? measure_.sum / static_cast<double>(measure_.count - measure_.nan - measure_.inf) : 0);
    object.Set("l2", std::sqrt(measure_.squares));
    object.Set("crc", static_cast<double>(measure_.crc));
    Napi::Array sketch = Napi::Array::New(info.Env(), align::kSketches);
    for (std::uint32_t k = 0; k < align::kSketches; ++k) sketch.Set(k, measure_.sketch[k]);
    object.Set("sketch", sketch);
    return object;
  }

  align::Measure measure_;
};

Napi::Object from_pair(Napi::Env env, const align::PairMeasure& pair) {
  Napi::Object object = Napi::Object::New(env);
  const std::pair<const char*, double> fields[] = {{"count", static_cast<double>(pair.count)},
                                                   {"finite", static_cast<double>(pair.finite)},
                                                   {"equal", static_cast<double>(pair.equal)},
                                                   {"odd", static_cast<double>(pair.odd)},
                                                   {"withinOne", static_cast<double>(pair.within_one)},
                                                   {"withinFive", static_cast<double>(pair.within_five)},
                                                   {"dot", pair.dot},
                                                   {"squaresA", pair.squares_a},
                                                   {"squaresB", pair.squares_b},
                                                   {"squaredDistance", pair.squared_distance},
                                                   {"maxAbsolute", pair.max_absolute},
                                                   {"maxRelative", pair.max_relative},
                                                   {"worst", static_cast<double>(pair.worst)}};
  for (const auto& [name, value] : fields) object.Set(name, value);
  Napi::Array ulps = Napi::Array::New(env, align::kUlpBuckets);
  for (std::uint32_t k = 0; k < align::kUlpBuckets; ++k) ulps.Set(k, static_cast<double>(pair.ulps[k]));
  object.Set("ulps", ulps);
  return object;
}

/// Gathers a PairMeasure over calls of add(a, b).
class PairMeasureWrap : public Napi::ObjectWrap<PairMeasureWrap> {
 public:
  explicit PairMeasureWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<PairMeasureWrap>(info) {}
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "NativePairMeasure",
        {InstanceMethod<&PairMeasureWrap::add>("add"), InstanceMethod<&PairMeasureWrap::result>("result")});
  }

 private:
  Napi::Value add(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Bytes a = to_bytes(info[0], "a"), b = to_bytes(info[2], "b");
      const DType a_dtype = dtype_from_name(to_string(info[1], "a's dtype"));
      const DType b_dtype = dtype_from_name(to_string(info[3], "b's dtype"));
      const std::size_t count = elements_of(a, a_dtype, "a");
      require(elements_of(b, b_dtype, "b") == count, "ERR_ARGUMENT", "b: expected ", count,
              " elements, as a, got ", elements_of(b, b_dtype, "b"));
      align::add_together(pair_, a.data, a_dtype, b.data, b_dtype, count);
      return info.Env().Undefined();
    });
  }
  Napi::Value result(const Napi::CallbackInfo& info) { return from_pair(info.Env(), pair_); }

  align::PairMeasure pair_;
};

/// Compares what lies in files while JavaScript goes on.
class StoredMeasure final : public Napi::AsyncWorker {
 public:
  StoredMeasure(Napi::Env env, align::StoredElements a, align::StoredElements b, std::uint64_t elements)
      : Napi::AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        a_(std::move(a)),
        b_(std::move(b)),
        elements_(elements) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

 private:
  void Execute() override {
    try {
      pair_ = align::measure_stored(a_, b_, elements_);
    } catch (...) {
      failed_ = std::current_exception();
    }
  }
  void OnOK() override {
    if (failed_) return deferred_.Reject(to_js_error(Env(), failed_).Value());
    deferred_.Resolve(from_pair(Env(), pair_));
  }

  Napi::Promise::Deferred deferred_;
  const align::StoredElements a_, b_;
  const std::uint64_t elements_;
  align::PairMeasure pair_;
  std::exception_ptr failed_;
};

align::StoredElements to_stored(const Napi::Value& value, const char* name) {
  const Napi::Object object = to_object(value, name);
  const std::int64_t offset = to_integer(field(object, "offset"), "offset");
  require(offset >= 0, "ERR_ARGUMENT", "offset: expected 0 or more, got ", offset);
  return {to_string(field(object, "path"), "path"), static_cast<std::uint64_t>(offset),
          dtype_from_name(to_string(field(object, "dtype"), "dtype"))};
}

Napi::Value measure_stored(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::int64_t elements = to_integer(info[2], "elements");
    require(elements >= 0, "ERR_ARGUMENT", "elements: expected 0 or more, got ", elements);
    auto* work = new StoredMeasure(info.Env(), to_stored(info[0], "a"), to_stored(info[1], "b"),
                                   static_cast<std::uint64_t>(elements));
    const Napi::Promise promise = work->promise();
    work->Queue();  // it deletes itself when it is done
    return promise;
  });
}

Napi::Value crc(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Bytes bytes = to_bytes(info[1], "data");
    const auto before = static_cast<std::uint32_t>(to_integer(info[0], "crc"));
    return Napi::Number::New(info.Env(), align::crc32(before, bytes.data, bytes.count));
  });
}

}  // namespace

void define_measures(Napi::Env env, Napi::Object exports) {
  exports.Set("Measure", MeasureWrap::define(env));
  exports.Set("PairMeasure", PairMeasureWrap::define(env));
  exports.Set("measureStored", Napi::Function::New<&measure_stored>(env));
  exports.Set("crc32", Napi::Function::New<&crc>(env));
}

}  // namespace danceflux::addon
