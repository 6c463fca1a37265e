// What this plugin knows of HCCL, as acl.h does of ACL. In CANN 8 all of it is in libhccl.so; in 9 what makes
// communicators is in libhcomm.so. Nothing here has the numbers of NCCL or of aclDataType.
//
// Source: hccl/hccl.h, hccl_types.h of CANN 8.1.RC1 and of the open 9.x tree.
#pragma once
#include <cstddef>
#include <cstdint>

#include "backend/ascend/acl.h"

namespace danceflux::ascend {

using HcclComm = void*;

enum HcclStatus : std::int32_t {
  kHcclSuccess = 0,
  kHcclPara = 1,
  kHcclTimeout = 9,
  kHcclRemote = 21,
};
enum HcclType : std::int32_t { kHcclFp16 = 3, kHcclFp32 = 4, kHcclBfp16 = 11 };
enum HcclOperation : std::int32_t { kHcclSum = 0, kHcclMax = 2 };

/// Opaque; of one rank, carried to all.
struct HcclRootInfo {
  char bytes[4108];
};
static_assert(sizeof(HcclRootInfo) == 4108 && alignof(HcclRootInfo) == 1);

/// Version 5, the layout of CANN 8.1. Later libraries take it by its size and version and leave what came
/// after it at its defaults; a newer layout would be read past its end by an older library.
struct HcclCommConfig {
  std::uint8_t size[8];  // size_t, but the struct has alignment 4 from here on
  std::uint32_t magic;
  std::uint32_t version;
  std::uint8_t reserved[8];
  std::uint32_t buffer_size_mb;
  std::uint32_t deterministic;  // 0, 1, 2 (order kept)
  char name[128];
  char udi[128];
  std::uint32_t op_expansion_mode;
  std::uint32_t rdma_traffic_class;
  std::uint32_t rdma_service_level;
};
static_assert(sizeof(HcclCommConfig) == 300);
static_assert(offsetof(HcclCommConfig, magic) == 8 && offsetof(HcclCommConfig, version) == 12);
static_assert(offsetof(HcclCommConfig, reserved) == 16 && offsetof(HcclCommConfig, buffer_size_mb) == 24);
static_assert(offsetof(HcclCommConfig, deterministic) == 28 && offsetof(HcclCommConfig, name) == 32);
static_assert(offsetof(HcclCommConfig, udi) == 160 && offsetof(HcclCommConfig, op_expansion_mode) == 288);
static_assert(offsetof(HcclCommConfig, rdma_traffic_class) == 292);
static_assert(offsetof(HcclCommConfig, rdma_service_level) == 296);

inline constexpr std::uint32_t kHcclConfigMagic = 0xf0f0f0f0;
inline constexpr std::uint32_t kHcclConfigVersion = 5;
/// Libraries before CANN 8 accept this size only; they lack the capability below.
inline constexpr std::size_t kHcclConfigOldSize = 32;
inline constexpr std::uint32_t kHcclCapabilityName = 2;
/// Left to the environment and the library's default.
inline constexpr std::uint32_t kHcclNotSet = 0xffffffff;

#define DANCEFLUX_HCCL_FUNCTIONS(X)                                                                          \
  X(HcclStatus, HcclGetRootInfo, (HcclRootInfo * root))                                                      \
  X(HcclStatus, HcclCommInitRootInfoConfig,                                                                  \
    (std::uint32_t ranks, const HcclRootInfo* root, std::uint32_t rank, const HcclCommConfig* config,        \
     HcclComm* comm))                                                                                        \
  X(HcclStatus, HcclCommDestroy, (HcclComm comm))                                                            \
  X(HcclStatus, HcclAllReduce,                                                                               \
    (void* send, void* receive, std::uint64_t count, HcclType type, HcclOperation operation, HcclComm comm,  \
     AclStream stream))                                                                                      \
  X(HcclStatus, HcclReduceScatter,                                                                           \
    (void* send, void* receive, std::uint64_t receive_count, HcclType type, HcclOperation operation,         \
     HcclComm comm, AclStream stream))                                                                       \
  X(HcclStatus, HcclAllGather,                                                                               \
    (void* send, void* receive, std::uint64_t send_count, HcclType type, HcclComm comm, AclStream stream))   \
  X(HcclStatus, HcclBroadcast,                                                                               \
    (void* buffer, std::uint64_t count, HcclType type, std::uint32_t root, HcclComm comm, AclStream stream)) \
  X(HcclStatus, HcclBarrier, (HcclComm comm, AclStream stream))

#define DANCEFLUX_HCCL_OPTIONAL(X)                                                        \
  X(HcclStatus, HcclCommInitClusterInfoConfig,                                            \
    (const char* rank_table, std::uint32_t rank, HcclCommConfig* config, HcclComm* comm)) \
  X(HcclStatus, HcclGetCommAsyncError, (HcclComm comm, HcclStatus * error))               \
  X(const char*, HcclGetErrorString, (HcclStatus status))                                 \
  X(std::uint32_t, HcclGetCommConfigCapability, ())

struct Hccl {
#define DF_MEMBER(result, name, parameters) result(*name) parameters = nullptr;
  DANCEFLUX_HCCL_FUNCTIONS(DF_MEMBER)
  DANCEFLUX_HCCL_OPTIONAL(DF_MEMBER)
#undef DF_MEMBER
};

}  // namespace danceflux::ascend
