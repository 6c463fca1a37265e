// Measures of bytes that JavaScript holds: the same code that measures on a device's thread.
#include <cmath>
#include <utility>

#include "addon/convert.h"
#include "addon/host.h"
#include "align/measure.h"

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
      pair_.add_together(a.data, a_dtype, b.data, b_dtype, count);
      return info.Env().Undefined();
    });
  }
  Napi::Value result(const Napi::CallbackInfo& info) {
    Napi::Object object = Napi::Object::New(info.Env());
    const std::pair<const char*, double> fields[] = {{"count", static_cast<double>(pair_.count)},
                                                     {"finite", static_cast<double>(pair_.finite)},
                                                     {"equal", static_cast<double>(pair_.equal)},
                                                     {"odd", static_cast<double>(pair_.odd)},
                                                     {"withinOne", static_cast<double>(pair_.within_one)},
                                                     {"withinFive", static_cast<double>(pair_.within_five)},
                                                     {"dot", pair_.dot},
                                                     {"squaresA", pair_.squares_a},
                                                     {"squaresB", pair_.squares_b},
                                                     {"squaredDistance", pair_.squared_distance},
                                                     {"maxAbsolute", pair_.max_absolute},
                                                     {"maxRelative", pair_.max_relative},
                                                     {"worst", static_cast<double>(pair_.worst)}};
    for (const auto& [name, value] : fields) object.Set(name, value);
    Napi::Array ulps = Napi::Array::New(info.Env(), align::kUlpBuckets);
    for (std::uint32_t k = 0; k < align::kUlpBuckets; ++k) ulps.Set(k, static_cast<double>(pair_.ulps[k]));
    object.Set("ulps", ulps);
    return object;
  }

  align::PairMeasure pair_;
};

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
  exports.Set("crc32", Napi::Function::New<&crc>(env));
}

}  // namespace danceflux::addon
