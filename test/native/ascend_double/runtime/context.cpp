// aclInit, devices, contexts, system options, what the device is.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "ascend_double/runtime/report.h"
#include "ascend_double/runtime/stream.h"

namespace ascend_double {
namespace {

struct Device {
  Context* context = nullptr;
  int references = 0;
};

struct Runtime {
  std::mutex mutex;
  bool initialized = false;
  std::uint64_t references = 0;
  Device devices[kMostDevices];
  std::map<int, std::int64_t> options;
};
Runtime& runtime() {
  static Runtime& only = *new Runtime;
  return only;
}

thread_local Context* current = nullptr;

// ASCEND_RT_VISIBLE_DEVICES re-indexes from 0; parsing stops at the first token that is no number.
int device_count() {
  const int present = static_cast<int>(setting("DEVICES", std::int64_t{2}));
  const char* visible = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
  if (!visible) return present;
  int count = 0;
  for (const char* at = visible; *at;) {
    char* end = nullptr;
    const long id = std::strtol(at, &end, 10);
    if (end == at || *at == ' ' || id < 0 || id >= present) break;
    ++count;
    if (*end != ',') break;
    at = end + 1;
  }
  return count;
}

void check_device(std::int32_t device) {
  if (device < 0 || device >= device_count() || device >= kMostDevices)
    refuse(ACL_ERROR_RT_INVALID_DEVICEID, "device %d of %d", device, device_count());
}

void destroy(Context* context) {
  std::vector<Stream*> owned;
  streams().each([&](Stream& stream) {
    if (stream.context == context) owned.push_back(&stream);
  });
  for (Stream* stream : owned) {
    stream->close();
    streams().remove(stream);
  }
  contexts().remove(context);
}

void release(int device, bool force) {
  const std::scoped_lock lock(runtime().mutex);
  Device& entry = runtime().devices[device];
  if (entry.references == 0) refuse(ACL_ERROR_RT_CONTEXT_NULL, "device %d was not set", device);
  entry.references = force ? 0 : entry.references - 1;
  if (entry.references > 0) return;
  destroy(entry.context);
  entry.context = nullptr;
}

}  // namespace

Context& current_context() {
  if (!current || !contexts().alive(current))
    refuse(ACL_ERROR_RT_CONTEXT_NULL,
           "this thread has no context: call aclrtSetDevice or aclrtSetCurrentContext first");
  return *current;
}

std::int64_t process_option(int option) {
  const std::scoped_lock lock(runtime().mutex);
  const auto found = runtime().options.find(option);
  return found == runtime().options.end() ? 0 : found->second;
}

// ---- once per process
// ----------------------------------------------------------------------------------------------------
ENTRY(acl, aclInit, const char* /*config*/) {
  const std::scoped_lock lock(runtime().mutex);
  ++runtime().references;
  if (runtime().initialized) refuse(ACL_ERROR_REPEAT_INITIALIZE, "acl is initialized already");
  runtime().initialized = true;
  return ACL_SUCCESS;
}

static int finalize() {
  const std::scoped_lock lock(runtime().mutex);
  if (!runtime().initialized) refuse(ACL_ERROR_UNINITIALIZE, "acl is not initialized");
  runtime().initialized = false;
  runtime().references = 0;
  report().leaks.clear();
  note_leaks();
  return ACL_SUCCESS;
}

ENTRY(acl, aclFinalize) { return finalize(); }

ENTRY9(acl, aclFinalizeReference, std::uint64_t* left) {
  {
    const std::scoped_lock lock(runtime().mutex);
    if (!runtime().initialized) refuse(ACL_ERROR_UNINITIALIZE, "acl is not initialized");
    --runtime().references;
    if (left) *left = runtime().references;
    if (runtime().references > 0) return ACL_SUCCESS;
  }
  return finalize();
}

ENTRY(base, aclnnInit, const char* /*config*/) { return ACL_SUCCESS; }
ENTRY(base, aclnnFinalize) { return ACL_SUCCESS; }

ENTRY(acl, aclrtGetVersion, std::int32_t* major, std::int32_t* minor, std::int32_t* patch) {
  if (!major || !minor || !patch) refuse(ACL_ERROR_INVALID_PARAM, "expected three pointers");
  *major = 1;
  *minor = layout() >= 9 ? 16 : 13;
  *patch = 0;
  return ACL_SUCCESS;
}

struct PackageVersion {
  char version[128];
  char major[64], minor[64], release[64], patch[64];
  char reserved[128];
};
ENTRY(acl, aclsysGetCANNVersion, int /*package*/, PackageVersion* out) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *out = {};
  std::strcpy(out->version, layout() >= 9 ? "9.0.0" : "8.1.RC1");
  std::strcpy(out->major, layout() >= 9 ? "9" : "8");
  std::strcpy(out->minor, layout() >= 9 ? "0" : "1");
  return ACL_SUCCESS;
}

ENTRY_OF(const char*, acl, aclrtGetSocName) { return soc().name.c_str(); }
ENTRY(acl, aclrtGetRunMode, int* mode) {
  if (!mode) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *mode = 1;
  return ACL_SUCCESS;
}

static int capability(std::uint32_t device, int what, std::int64_t* value) {
  if (!value) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  check_device(static_cast<std::int32_t>(device));
  static constexpr std::int64_t kValues[] = {24, 48, std::int64_t{192} << 20};  // AI cores, vector cores, L2
  if (what < 0 || what > 2) refuse(ACL_ERROR_INVALID_PARAM, "unknown capability %d", what);
  *value = kValues[what];
  return ACL_SUCCESS;
}
ENTRY(acl, aclGetDeviceCapability, std::uint32_t device, int what, std::int64_t* value) {
  return capability(device, what, value);
}
ENTRY9(acl, aclrtGetDeviceInfo, std::uint32_t device, int what, std::int64_t* value) {
  return capability(device, what, value);
}

// ---- devices
// ---------------------------------------------------------------------------------------------------------------
ENTRY(acl, aclrtGetDeviceCount, std::uint32_t* count) {
  if (!count) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *count = static_cast<std::uint32_t>(device_count());
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtSetDevice, std::int32_t device) {
  check_device(device);
  const std::scoped_lock lock(runtime().mutex);
  Device& entry = runtime().devices[device];
  if (!entry.context) {
    entry.context = contexts().add(new Context);
    entry.context->device = device;
    entry.context->is_default = true;
  }
  ++entry.references;
  current = entry.context;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtGetDevice, std::int32_t* device) {
  if (!device) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *device = current_context().device;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtResetDevice, std::int32_t device) {
  check_device(device);
  release(device, false);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtResetDeviceForce, std::int32_t device) {
  check_device(device);
  release(device, true);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtDeviceCanAccessPeer, std::int32_t* can, std::int32_t device, std::int32_t peer) {
  if (!can) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  check_device(device);
  check_device(peer);
  *can = device != peer;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtDeviceEnablePeerAccess, std::int32_t peer, std::uint32_t flags) {
  check_device(peer);
  if (flags != 0) refuse(ACL_ERROR_INVALID_PARAM, "expected no flags");
  return ACL_SUCCESS;
}

// ---- contexts
// --------------------------------------------------------------------------------------------------------------
ENTRY(acl, aclrtCreateContext, aclrtContext* out, std::int32_t device) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  check_device(device);
  Context* context = contexts().add(new Context);
  context->device = device;
  current = context;
  *out = context;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtDestroyContext, aclrtContext handle) {
  Context& context = contexts().get(handle, ACL_ERROR_RT_PARAM_INVALID, ACL_ERROR_INVALID_PARAM);
  if (context.is_default)
    refuse(ACL_ERROR_RT_PARAM_INVALID, "the default context goes with aclrtResetDevice");
  destroy(&context);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtSetCurrentContext, aclrtContext handle) {
  current = &contexts().get(handle, ACL_ERROR_RT_PARAM_INVALID, ACL_ERROR_INVALID_PARAM);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtGetCurrentContext, aclrtContext* out) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *out = &current_context();
  return ACL_SUCCESS;
}

// ---- options
// ---------------------------------------------------------------------------------------------------------------
static void check_option(int option, std::int64_t value) {
  if (option < 0 || option > (layout() >= 9 ? 3 : 1))
    refuse(ACL_ERROR_INVALID_PARAM, "unknown option %d", option);
  const std::int64_t most = option == ACL_OPT_DETERMINISTIC && layout() >= 9 ? 3 : 1;
  if (value < 0 || value > most)
    refuse(ACL_ERROR_INVALID_PARAM, "option %d takes 0 to %lld", option, static_cast<long long>(most));
}

ENTRY(acl, aclrtSetSysParamOpt, int option, std::int64_t value) {
  check_option(option, value);
  const std::scoped_lock lock(runtime().mutex);
  runtime().options[option] = value;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtGetSysParamOpt, int option, std::int64_t* value) {
  if (!value) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *value = process_option(option);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtCtxSetSysParamOpt, int option, std::int64_t value) {
  check_option(option, value);
  Context& context = current_context();
  const std::scoped_lock lock(context.mutex);
  context.options[option] = value;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtCtxGetSysParamOpt, int option, std::int64_t* value) {
  if (!value) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  Context& context = current_context();
  const std::scoped_lock lock(context.mutex);
  const auto found = context.options.find(option);
  if (found == context.options.end())
    refuse(ACL_ERROR_INVALID_PARAM, "option %d was never set in this context", option);
  *value = found->second;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtSetOpWaitTimeout, std::uint32_t /*seconds*/) { return ACL_SUCCESS; }
ENTRY(acl, aclrtSetOpExecuteTimeOut, std::uint32_t /*seconds*/) { return ACL_SUCCESS; }
ENTRY(acl, aclrtSetDeviceSatMode, int mode) {
  if (mode != 0 && mode != 1) refuse(ACL_ERROR_INVALID_PARAM, "expected 0 (saturate) or 1 (INF and NaN)");
  current_context();
  return ACL_SUCCESS;
}

}  // namespace ascend_double
