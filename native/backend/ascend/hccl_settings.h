// What openDevice and initGroup may say of HCCL, and the configuration that a communicator is made with.
#pragma once
#include <string>

#include "backend/ascend/hccl.h"
#include "backend/ascend/libraries.h"

namespace danceflux::ascend {

/// Engine options: what lib/distributed/options.ts sends as fields.
struct HcclSettings {
  std::uint32_t buffer_size_mb = kHcclNotSet;
  std::uint32_t deterministic = kHcclNotSet;  // 0, 1, 2 (strict)
  std::uint32_t op_expansion_mode = 0;
  std::uint32_t rdma_traffic_class = kHcclNotSet, rdma_service_level = kHcclNotSet;
  std::string rank_table;  // path; "": ranks meet by rank 0's root info
};
/// Throws ERR_OPTION.
HcclSettings read_hccl_settings(const std::string& engine_options);

/// What HCCL is told. A strict order exists on A2 and A3; other chips get the plain deterministic one, and
/// Ascend950, which always is, gets none. `capability` as HcclGetCommConfigCapability answers.
HcclCommConfig make_hccl_config(const HcclSettings& settings, Chip chip, const std::string& name,
                                std::uint32_t capability);

}  // namespace danceflux::ascend
