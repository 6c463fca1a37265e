// What a communicator is told: the environment, read once per process, and HcclCommConfig.
#pragma once
#include <cstdint>
#include <string>

#include "ascend_double/runtime/core.h"

namespace ascend_double {

struct HcclSettings {
  std::int64_t buffer_mib = 200;
  int deterministic = 0;               // 2: strict
  std::int64_t exec_timeout_s = 1836;  // 0: never
  std::int64_t connect_timeout_s = 120;
  std::string name;
};

/// HCCL_* of the environment as it was at the first call. Refuses with HCCL_E_PARA where a value is wrong,
/// every time.
const HcclSettings& environment_settings();

/// The first fields of HcclCommConfig; NULL: none. Checks magic, size and version, and applies the fields of
/// that version.
HcclSettings settings_of(const void* config);

/// HcclSetConfig(HCCL_DETERMINISTIC): the default of this process, over the environment. -1: not set.
int process_deterministic();

}  // namespace ascend_double
