#include "addon/convert.h"

#include <cmath>
#include <cstring>

namespace danceflux::addon {
namespace {

const char* type_name(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return "a boolean";
    case napi_number:
      return "a number";
    case napi_string:
      return "a string";
    case napi_function:
      return "a function";
    case napi_bigint:
      return "a bigint";
    default:
      return "an object";
  }
}

[[noreturn]] void wrong(const char* name, const char* expected, const Napi::Value& value) {
  fail("ERR_ARGUMENT", name, ": expected ", expected, ", got ", type_name(value));
}

}  // namespace

double to_number(const Napi::Value& value, const char* name) {
  if (!value.IsNumber()) wrong(name, "a number", value);
  return value.As<Napi::Number>().DoubleValue();
}

std::int64_t to_integer(const Napi::Value& value, const char* name) {
  const double number = to_number(value, name);
  require(std::trunc(number) == number && std::abs(number) <= 9007199254740991.0, "ERR_ARGUMENT", name,
          ": expected an integer, got ", number);
  return static_cast<std::int64_t>(number);
}

bool to_bool(const Napi::Value& value, const char* name) {
  if (!value.IsBoolean()) wrong(name, "a boolean", value);
  return value.As<Napi::Boolean>().Value();
}

std::string to_string(const Napi::Value& value, const char* name) {
  if (!value.IsString()) wrong(name, "a string", value);
  return value.As<Napi::String>().Utf8Value();
}

std::uint64_t to_u64(const Napi::Value& value, const char* name) {
  if (!value.IsBigInt()) wrong(name, "a bigint", value);
  bool lossless = false;
  const std::uint64_t number = value.As<Napi::BigInt>().Uint64Value(&lossless);
  require(lossless, "ERR_ARGUMENT", name, ": expected a bigint of 0 to 2^64 - 1");
  return number;
}

Napi::Object to_object(const Napi::Value& value, const char* name) {
  if (!value.IsObject()) wrong(name, "an object", value);
  return value.As<Napi::Object>();
}

Napi::Array to_array(const Napi::Value& value, const char* name) {
  if (!value.IsArray()) wrong(name, "an array", value);
  return value.As<Napi::Array>();
}

std::vector<float> to_floats(const Napi::Value& value, const char* name) {
  std::vector<float> numbers;
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_float32_array) {
    const auto typed = value.As<Napi::Float32Array>();
    return {typed.Data(), typed.Data() + typed.ElementLength()};
  }
  const Napi::Array array = to_array(value, name);
  for (std::uint32_t i = 0; i < array.Length(); ++i) {
    numbers.push_back(static_cast<float>(to_number(array.Get(i), name)));
  }
  return numbers;
}

std::vector<std::string> to_strings(const Napi::Value& value, const char* name) {
  const Napi::Array array = to_array(value, name);
  std::vector<std::string> strings;
  for (std::uint32_t i = 0; i < array.Length(); ++i) strings.push_back(to_string(array.Get(i), name));
  return strings;
}

Shape to_shape(const Napi::Value& value, const char* name) {
  const Napi::Array array = to_array(value, name);
  Shape shape;
  for (std::uint32_t i = 0; i < array.Length(); ++i) {
    const std::int64_t dim = to_integer(array.Get(i), name);
    require(dim >= 0, "ERR_ARGUMENT", name, ": expected dimensions of 0 or more, got ", dim);
    shape.push_back(dim);
  }
  return shape;
}

NoiseKey to_noise_key(const Napi::Value& value) {
  const Napi::Object object = to_object(value, "noise key");
  const auto word = [&](const char* name) {
    const std::int64_t number = to_integer(field(object, name), name);
    require(number >= 0 && number <= 0xffffffffLL, "ERR_ARGUMENT", name, ": expected 0 to 2^32 - 1, got ",
            number);
    return static_cast<std::uint32_t>(number);
  };
  return {to_u64(field(object, "seed"), "seed"),
          word("iteration"),
          word("prompt"),
          word("sample"),
          word("timestep"),
          word("purpose")};
}

std::vector<NoiseKey> to_noise_keys(const Napi::Value& value) {
  const Napi::Array array = to_array(value, "noise");
  std::vector<NoiseKey> keys;
  for (std::uint32_t i = 0; i < array.Length(); ++i) keys.push_back(to_noise_key(array.Get(i)));
  return keys;
}

std::map<std::string, std::string> to_string_map(const Napi::Value& value, const char* name) {
  const Napi::Object object = to_object(value, name);
  std::map<std::string, std::string> result;
  const Napi::Array keys = object.GetPropertyNames();
  for (std::uint32_t i = 0; i < keys.Length(); ++i) {
    const std::string key = to_string(keys.Get(i), name);
    result[key] = to_string(object.Get(key), key.c_str());
  }
  return result;
}

Napi::Value field(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  require(!value.IsUndefined(), "ERR_ARGUMENT", name, ": expected a value, got undefined");
  return value;
}

int int_field(const Napi::Object& object, const char* name) {
  const std::int64_t number = to_integer(field(object, name), name);
  require(number >= -0x7fffffffLL && number <= 0x7fffffffLL, "ERR_ARGUMENT", name,
          ": expected an integer of 32 bits, got ", number);
  return static_cast<int>(number);
}

Napi::Float32Array from_floats(Napi::Env env, const std::vector<float>& values) {
  Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(float));
  return array;
}

Napi::Array from_shape(Napi::Env env, const Shape& shape) {
  Napi::Array array = Napi::Array::New(env, static_cast<std::size_t>(shape.rank()));
  for (int axis = 0; axis < shape.rank(); ++axis) {
    array.Set(static_cast<std::uint32_t>(axis), static_cast<double>(shape[axis]));
  }
  return array;
}

}  // namespace danceflux::addon
