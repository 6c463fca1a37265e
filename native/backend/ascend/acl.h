// What this plugin knows of CANN's C interface: own declarations of just the types, numbers and functions
// that it uses, as of CANN 8.1. No header of the toolkit is needed to build it and no library to load it; the
// functions are found by name when the plugin is probed (libraries.h).
//
// Source: acl/acl_base.h, acl_rt.h, aclnn/acl_meta.h of CANN 8.1.RC1, compared with the open 9.x trees, where
// the same functions keep their parameters.
#pragma once
#include <cstddef>
#include <cstdint>

namespace danceflux::ascend {

using AclStatus = std::int32_t;  // 0: done
using AclStream = void*;
using AclEvent = void*;
using AclContext = void*;

struct aclTensor;
struct aclScalar;
struct aclIntArray;
struct aclBoolArray;
struct aclOpExecutor;

enum AclDataType : std::int32_t {
  kAclFloat = 0,
  kAclFloat16 = 1,
  kAclInt32 = 3,
  kAclUint8 = 4,
  kAclInt64 = 9,
  kAclDouble = 11,
  kAclBool = 12,
  kAclBf16 = 27,
};
enum AclFormat : std::int32_t { kFormatNchw = 0, kFormatNd = 2 };

enum : std::int32_t {
  kAclSuccess = 0,
  kAclRepeatInitialize = 100002,
  kAclBadAlloc = 200000,
  kAclRtMemoryAllocation = 207001,
  kAclRtDeviceOutOfMemory = 207018,
  kAclRtStreamSyncTimeout = 507046,
};

enum : std::int32_t { kMallocHugeFirst = 0 };
enum AclCopyKind : std::int32_t { kHostToDevice = 1, kDeviceToHost = 2, kDeviceToDevice = 3 };
enum : std::int32_t { kHbmMemory = 1 };
enum : std::uint32_t { kStreamFastLaunch = 1, kStreamFastSync = 2 };
enum : std::uint64_t { kStopOnFailure = 1 };
enum : std::uint32_t { kEventSync = 1 };
/// Of aclrtQueryEventStatus; aclrtQueryEvent, which is deprecated, has them the other way round.
enum AclEventStatus : std::int32_t { kEventNotReady = 0, kEventComplete = 1 };
enum AclOption : std::int32_t { kOptDeterministic = 0, kOptStrongConsistency = 2 };

/// How a product of f32 matrices may be made. Others exist (1 and 2 lower the precision as they see fit).
enum : std::int8_t {
  kKeepDtype = 0,
  kUseHf32 = 3,  // inputs are cut to 11 bits of mantissa
};

/// aclsysGetCANNVersion
enum : std::int32_t { kPackageCann = 0 };
struct AclPackageVersion {
  char version[128];
  char major[64], minor[64], release[64], patch[64];
  char reserved[128];
};
static_assert(sizeof(AclPackageVersion) == 128 + 4 * 64 + 128);

// X(result, name, (parameters)): what every CANN since 8.0 has. The plugin is of no use without one of them.
#define DANCEFLUX_ACL_FUNCTIONS(X)                                                                         \
  X(AclStatus, aclInit, (const char* config_path))                                                         \
  X(const char*, aclGetRecentErrMsg, ())                                                                   \
  X(AclStatus, aclrtGetVersion, (std::int32_t * major, std::int32_t * minor, std::int32_t * patch))        \
  X(const char*, aclrtGetSocName, ())                                                                      \
  X(AclStatus, aclrtGetDeviceCount, (std::uint32_t * count))                                               \
  X(AclStatus, aclrtSetDevice, (std::int32_t device))                                                      \
  X(AclStatus, aclrtResetDevice, (std::int32_t device))                                                    \
  X(AclStatus, aclrtGetCurrentContext, (AclContext * context))                                             \
  X(AclStatus, aclrtSetCurrentContext, (AclContext context))                                               \
  X(AclStatus, aclrtCreateStream, (AclStream * stream))                                                    \
  X(AclStatus, aclrtDestroyStream, (AclStream stream))                                                     \
  X(AclStatus, aclrtSynchronizeStream, (AclStream stream))                                                 \
  X(AclStatus, aclrtSetStreamFailureMode, (AclStream stream, std::uint64_t mode))                          \
  X(AclStatus, aclrtCreateEventExWithFlag, (AclEvent * event, std::uint32_t flag))                         \
  X(AclStatus, aclrtDestroyEvent, (AclEvent event))                                                        \
  X(AclStatus, aclrtRecordEvent, (AclEvent event, AclStream stream))                                       \
  X(AclStatus, aclrtStreamWaitEvent, (AclStream stream, AclEvent event))                                   \
  X(AclStatus, aclrtQueryEventStatus, (AclEvent event, AclEventStatus * status))                           \
  X(AclStatus, aclrtSynchronizeEvent, (AclEvent event))                                                    \
  X(AclStatus, aclrtMalloc, (void** address, std::size_t bytes, std::int32_t policy))                      \
  X(AclStatus, aclrtFree, (void* address))                                                                 \
  X(AclStatus, aclrtMallocHost, (void** address, std::size_t bytes))                                       \
  X(AclStatus, aclrtFreeHost, (void* address))                                                             \
  X(AclStatus, aclrtMemcpy,                                                                                \
    (void* to, std::size_t room, const void* from, std::size_t bytes, AclCopyKind kind))                   \
  X(AclStatus, aclrtMemcpyAsync,                                                                           \
    (void* to, std::size_t room, const void* from, std::size_t bytes, AclCopyKind kind, AclStream stream)) \
  X(AclStatus, aclrtGetMemInfo, (std::int32_t kind, std::size_t * free, std::size_t * total))              \
  X(AclStatus, aclrtSetSysParamOpt, (AclOption option, std::int64_t value))                                \
  X(AclStatus, aclrtCtxSetSysParamOpt, (AclOption option, std::int64_t value))

// Those that some versions lack; null where absent.
#define DANCEFLUX_ACL_OPTIONAL(X)                                                         \
  X(AclStatus, aclsysGetCANNVersion, (std::int32_t package, AclPackageVersion * version)) \
  X(AclStatus, aclrtCreateStreamWithConfig, (AclStream * stream, std::uint32_t priority, std::uint32_t flag))

// Descriptors and executors, from libnnopbase.so.
#define DANCEFLUX_NNOP_FUNCTIONS(X)                                                                       \
  X(aclTensor*, aclCreateTensor,                                                                          \
    (const std::int64_t* dims, std::uint64_t rank, AclDataType dtype, const std::int64_t* strides,        \
     std::int64_t offset, AclFormat format, const std::int64_t* storage_dims, std::uint64_t storage_rank, \
     void* storage))                                                                                      \
  X(AclStatus, aclDestroyTensor, (const aclTensor* tensor))                                               \
  X(aclScalar*, aclCreateScalar, (void* value, AclDataType dtype))                                        \
  X(AclStatus, aclDestroyScalar, (const aclScalar* scalar))                                               \
  X(aclIntArray*, aclCreateIntArray, (const std::int64_t* values, std::uint64_t size))                    \
  X(AclStatus, aclDestroyIntArray, (const aclIntArray* array))                                            \
  X(aclBoolArray*, aclCreateBoolArray, (const bool* values, std::uint64_t size))                          \
  X(AclStatus, aclDestroyBoolArray, (const aclBoolArray* array))

#define DANCEFLUX_NNOP_OPTIONAL(X)                                                    \
  X(AclStatus, aclSetAclOpExecutorRepeatable, (aclOpExecutor * executor))             \
  X(AclStatus, aclDestroyAclOpExecutor, (aclOpExecutor * executor))                   \
  X(AclStatus, aclSetInputTensorAddr,                                                 \
    (aclOpExecutor * executor, std::size_t index, aclTensor * tensor, void* address)) \
  X(AclStatus, aclSetOutputTensorAddr,                                                \
    (aclOpExecutor * executor, std::size_t index, aclTensor * tensor, void* address))

/// The functions above as pointers under their own names.
struct Acl {
#define DF_MEMBER(result, name, parameters) result(*name) parameters = nullptr;
  DANCEFLUX_ACL_FUNCTIONS(DF_MEMBER)
  DANCEFLUX_ACL_OPTIONAL(DF_MEMBER)
  DANCEFLUX_NNOP_FUNCTIONS(DF_MEMBER)
  DANCEFLUX_NNOP_OPTIONAL(DF_MEMBER)
#undef DF_MEMBER
};

}  // namespace danceflux::ascend
