// The door's frame: what `require("danceflux.node")` gives. Described in lib/native.ts.
#include <napi.h>

#include "addon/communicator_wrap.h"
#include "addon/device_wrap.h"
#include "addon/host.h"
#include "addon/models.h"
#include "addon/tensor_wrap.h"
#include "backend/plugin.h"

namespace danceflux::addon {
namespace {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  TensorWrap::define(env);
  DeviceWrap::define(env);
  define_models(env);
  define_communicators(env);
  define_host_functions(env, exports);
  exports.Set("openDevice", Napi::Function::New<&DeviceWrap::open>(env));
  exports.Set("abi", Napi::Number::New(env, DANCEFLUX_PLUGIN_ABI));
  exports.Set("version", Napi::String::New(env, DANCEFLUX_VERSION));
  return exports;
}

}  // namespace
}  // namespace danceflux::addon

static Napi::Object danceflux_init(Napi::Env env, Napi::Object exports) {
  return danceflux::addon::initialize(env, exports);
}

NODE_API_MODULE(danceflux, danceflux_init)
