// Memory calls of the runtime.
#include <cstring>

#include "ascend_double/runtime/stream.h"

namespace ascend_double {
namespace {

/// One side of a copy, ready to be resolved when it runs.
struct Side {
  void* address;
  std::size_t bytes;
  bool device;
  char* resolve() const {
    return device ? device_memory().storage(address, bytes) : static_cast<char*>(address);
  }
};

struct Copy {
  Side from, to;
  void run() const {
    const char* source = from.resolve();
    std::memmove(to.resolve(), source, from.bytes);
  }
};

void check_side(const Side& side, const char* which) {
  if (!side.address) refuse(ACL_ERROR_INVALID_PARAM, "%s is NULL", which);
  if (side.device != device_memory().is_device(side.address))
    refuse(ACL_ERROR_RT_PARAM_INVALID, "expected %s memory for the %s, got %p",
           side.device ? "device" : "host", which, side.address);
  if (!side.device) return;
  const std::string reason = device_memory().why_not_inside(side.address, side.bytes);
  if (reason.empty()) return;
  violation("a copy would touch memory that it may not: %s", reason.c_str());
  refuse(ACL_ERROR_RT_PARAM_INVALID, "%s: %s", which, reason.c_str());
}

Copy checked_copy(void* to, std::size_t most, const void* from, std::size_t bytes, int kind, bool async) {
  bool to_device = false, from_device = false;
  switch (kind) {
    case ACL_MEMCPY_HOST_TO_HOST:
      if (async) refuse(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, "host to host is not supported");
      break;
    case ACL_MEMCPY_HOST_TO_DEVICE:
      to_device = true;
      break;
    case ACL_MEMCPY_DEVICE_TO_HOST:
      from_device = true;
      break;
    case ACL_MEMCPY_DEVICE_TO_DEVICE:
    case ACL_MEMCPY_INNER_DEVICE_TO_DEVICE:
    case ACL_MEMCPY_INTER_DEVICE_TO_DEVICE:
      to_device = from_device = true;
      break;
    case ACL_MEMCPY_DEFAULT:
      to_device = device_memory().is_device(to);
      from_device = device_memory().is_device(from);
      break;
    default:
      refuse(ACL_ERROR_INVALID_PARAM, "unknown kind %d", kind);
  }
  if (bytes > most) refuse(ACL_ERROR_INVALID_PARAM, "%zu bytes into room for %zu", bytes, most);
  const Copy copy{{const_cast<void*>(from), bytes, from_device}, {to, bytes, to_device}};
  if (bytes == 0) return copy;
  check_side(copy.from, "source");
  check_side(copy.to, "destination");
  return copy;
}

}  // namespace

static void* allocated(std::size_t bytes, int policy, std::size_t pad) {
  Context& context = current_context();
  if (policy < 0 || policy > 7) refuse(ACL_ERROR_RT_PARAM_INVALID, "unknown policy %d", policy);
  return device_memory().allocate(context.device, bytes, pad);
}

ENTRY(acl, aclrtMalloc, void** out, std::size_t bytes, int policy) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *out = allocated(bytes, policy, soc().generation == 950 ? 0 : 32);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtMallocAlign32, void** out, std::size_t bytes, int policy) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *out = allocated(bytes, policy, 0);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtMallocWithCfg, void** out, std::size_t bytes, int policy, void* /*config*/) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *out = allocated(bytes, policy, 32);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtFree, void* address) {
  if (!address) refuse(ACL_ERROR_INVALID_PARAM, "expected an address");
  current_context();
  if (device_memory().is_device(address))
    check_races({address, device_memory().block_bytes(address), true}, "device memory was freed");
  device_memory().free(address);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtMallocHost, void** out, std::size_t bytes) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  current_context();
  *out = host_memory().allocate(bytes);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtFreeHost, void* address) {
  if (!address) refuse(ACL_ERROR_INVALID_PARAM, "expected an address");
  check_races({address, 1, true}, "pinned host memory was freed");
  host_memory().free(address);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtGetMemInfo, int which, std::size_t* free, std::size_t* total) {
  if (!free || !total) refuse(ACL_ERROR_INVALID_PARAM, "expected two pointers");
  const int device = current_context().device;
  *free = *total = 0;
  if (which == 0) return ACL_SUCCESS;  // DDR: these cards have none
  *total = device_memory().total();
  *free = *total - device_memory().used(device);
  return ACL_SUCCESS;
}

// Runs at once, whatever is queued.
ENTRY(acl, aclrtMemcpy, void* to, std::size_t most, const void* from, std::size_t bytes, int kind) {
  current_context();
  const Copy copy = checked_copy(to, most, from, bytes, kind, false);
  if (bytes == 0) return ACL_SUCCESS;
  check_races({from, bytes, false}, "aclrtMemcpy read memory");
  check_races({to, bytes, true}, "aclrtMemcpy wrote memory");
  copy.run();
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtMemcpyAsync, void* to, std::size_t most, const void* from, std::size_t bytes, int kind,
      aclrtStream handle) {
  Stream& stream = stream_of(handle);
  const Copy copy = checked_copy(to, most, from, bytes, kind, true);
  if (bytes == 0) return ACL_SUCCESS;
  const bool pinned_from = copy.from.device || host_memory().pinned(from, bytes);
  const bool pinned_to = copy.to.device || host_memory().pinned(to, bytes);
  // Who reads a result before it is there must not find the right bytes of the last run.
  if (!copy.to.device && pinned_to) std::memset(to, kPoison, bytes);
  const std::uint64_t number =
      stream.enqueue({"aclrtMemcpyAsync", {{from, bytes, false}, {to, bytes, true}}, [copy] { copy.run(); }});
  if (!pinned_from || !pinned_to) stream.wait(number);
  return ACL_SUCCESS;
}

static void check_fill(void* to, std::size_t most, std::size_t bytes) {
  if (!to) refuse(ACL_ERROR_INVALID_PARAM, "expected an address");
  if (bytes > most) refuse(ACL_ERROR_INVALID_PARAM, "%zu bytes into room for %zu", bytes, most);
  if (device_memory().is_device(to))
    check_side({to, bytes, true}, "destination");
  else if (!host_memory().pinned(to, bytes))
    refuse(ACL_ERROR_RT_PARAM_INVALID, "host memory must come from aclrtMallocHost");
}

ENTRY(acl, aclrtMemset, void* to, std::size_t most, std::int32_t value, std::size_t bytes) {
  current_context();
  check_fill(to, most, bytes);
  check_races({to, bytes, true}, "aclrtMemset wrote memory");
  std::memset(Side{to, bytes, device_memory().is_device(to)}.resolve(), value, bytes);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtMemsetAsync, void* to, std::size_t most, std::int32_t value, std::size_t bytes,
      aclrtStream handle) {
  Stream& stream = stream_of(handle);
  check_fill(to, most, bytes);
  const Side side{to, bytes, device_memory().is_device(to)};
  stream.enqueue({"aclrtMemsetAsync", {{to, bytes, true}}, [side, value] {
                    std::memset(side.resolve(), value, side.bytes);
                  }});
  return ACL_SUCCESS;
}

}  // namespace ascend_double
