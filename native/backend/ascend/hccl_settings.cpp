#include "backend/ascend/hccl_settings.h"

#include <cstring>

#include "backend/options.h"
#include "core/error.h"

namespace danceflux::ascend {
namespace {

struct ExpansionMode {
  const char* name;
  std::uint32_t value;
};
/// Of the configuration; the enumeration of the same name that HCCL answers questions with counts otherwise.
constexpr ExpansionMode kExpansionModes[] = {{"HOST", 1},     {"AI_CPU", 2}, {"AIV", 3},
                                             {"AIV_ONLY", 4}, {"CCU_MS", 5}, {"CCU_SCHED", 6}};

std::uint32_t read_mode(const std::string& name) {
  if (name.empty()) return 0;
  for (const ExpansionMode& mode : kExpansionModes) {
    if (name == mode.name) return mode.value;
  }
  fail("ERR_OPTION", "hccl.opExpansionMode: expected HOST, AI_CPU, AIV, AIV_ONLY, CCU_MS or CCU_SCHED, got ",
       name);
}

std::uint32_t read_deterministic(const DeviceOptions& options) {
  constexpr const char* kName = "deterministic";
  try {
    const std::string text = options.text(kName, "");
    if (text.empty()) return kHcclNotSet;
    require(text == "strict", "ERR_VALUE", text);
    return 2;
  } catch (const Error& error) {
    if (error.code == "ERR_VALUE")
      fail("ERR_OPTION", "hccl.deterministic: expected true, false or \"strict\", got ", error.what());
    return options.flag(kName, false) ? 1 : 0;
  }
}

std::uint32_t read_number(const DeviceOptions& options, const char* name, std::int64_t least,
                          std::int64_t most) {
  const std::int64_t value = options.integer(name, -1);
  if (value == -1) return kHcclNotSet;
  require(value >= least && value <= most, "ERR_OPTION", "hccl.", name, ": expected a whole number from ",
          least, " to ", most, ", got ", value);
  return static_cast<std::uint32_t>(value);
}

}  // namespace

HcclSettings read_hccl_settings(const std::string& engine_options) {
  const DeviceOptions options = DeviceOptions::parse(engine_options);
  options.allow_only("hccl", {"bufferSizeMiB", "deterministic", "opExpansionMode", "rdma.trafficClass",
                              "rdma.serviceLevel", "rankTable"});
  HcclSettings settings;
  settings.buffer_size_mb = read_number(options, "bufferSizeMiB", 1, 65536);
  settings.deterministic = read_deterministic(options);
  settings.op_expansion_mode = read_mode(options.text("opExpansionMode", ""));
  settings.rdma_traffic_class = read_number(options, "rdma.trafficClass", 0, 255);
  settings.rdma_service_level = read_number(options, "rdma.serviceLevel", 0, 7);
  settings.rank_table = options.text("rankTable", "");
  return settings;
}

HcclCommConfig make_hccl_config(const HcclSettings& settings, Chip chip, const std::string& name,
                                std::uint32_t capability) {
  HcclCommConfig config{};
  const std::size_t size = capability > kHcclCapabilityName ? sizeof config : kHcclConfigOldSize;
  std::memcpy(config.size, &size, sizeof size);
  config.magic = kHcclConfigMagic;
  config.version = kHcclConfigVersion;
  config.buffer_size_mb = settings.buffer_size_mb;
  config.deterministic = settings.deterministic;
  if (chip == Chip::a5) {
    config.deterministic = kHcclNotSet;
  } else if (settings.deterministic == 2 && chip != Chip::a2 && chip != Chip::a3) {
    config.deterministic = 1;
  }
  name.copy(config.name, sizeof config.name - 1);
  config.op_expansion_mode = settings.op_expansion_mode;
  config.rdma_traffic_class = settings.rdma_traffic_class;
  config.rdma_service_level = settings.rdma_service_level;
  return config;
}

}  // namespace danceflux::ascend
