// JavaScript values to C++ ones and back. Everything throws ERR_ARGUMENT as "name: expected ..., got ...".
#pragma once
#include <napi.h>

#include <map>
#include <string>
#include <vector>

#include "addon/job.h"
#include "core/error.h"
#include "core/philox.h"
#include "core/shape.h"

namespace danceflux::addon {

/// Runs `body`, turning C++ exceptions into JavaScript ones.
template <class Body>
auto guarded(Napi::Env env, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw to_js_error(env, std::current_exception());
  }
}

double to_number(const Napi::Value& value, const char* name);
std::int64_t to_integer(const Napi::Value& value, const char* name);
bool to_bool(const Napi::Value& value, const char* name);
std::string to_string(const Napi::Value& value, const char* name);
std::uint64_t to_u64(const Napi::Value& value, const char* name);
Napi::Object to_object(const Napi::Value& value, const char* name);
Napi::Array to_array(const Napi::Value& value, const char* name);
std::vector<float> to_floats(const Napi::Value& value, const char* name);
std::vector<std::string> to_strings(const Napi::Value& value, const char* name);
Shape to_shape(const Napi::Value& value, const char* name);
NoiseKey to_noise_key(const Napi::Value& value);
std::vector<NoiseKey> to_noise_keys(const Napi::Value& value);
std::map<std::string, std::string> to_string_map(const Napi::Value& value, const char* name);

/// A field of an object, which must be there.
Napi::Value field(const Napi::Object& object, const char* name);
inline double number_field(const Napi::Object& object, const char* name) {
  return to_number(field(object, name), name);
}
/// Throws outside of what an int holds.
int int_field(const Napi::Object& object, const char* name);

Napi::Float32Array from_floats(Napi::Env env, const std::vector<float>& values);
Napi::Array from_shape(Napi::Env env, const Shape& shape);

}  // namespace danceflux::addon
