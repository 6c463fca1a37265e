#include "ascend_double/hccl/config.h"

#include <strings.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

namespace ascend_double {
namespace {

constexpr std::uint32_t kMagic = 0xf0f0f0f0, kFollowEnvironment = 0xffffffff;

/// The struct as of CANN 8.1 (version 5), then what later versions appended as far as it is read here.
struct CommConfig {
  std::size_t size;
  std::uint32_t magic, version;
  std::uint64_t reserved;
  std::uint32_t buffer_mib, deterministic;
  char name[128], udi[128];
  std::uint32_t expansion_mode, traffic_class, service_level;
  std::uint32_t world_rank;
  std::uint64_t job;
  std::uint8_t zero_copy;
  std::int32_t exec_timeout_s;
};
static_assert(offsetof(CommConfig, buffer_mib) == 24 && offsetof(CommConfig, name) == 32 &&
              offsetof(CommConfig, expansion_mode) == 288 && offsetof(CommConfig, world_rank) == 300 &&
              offsetof(CommConfig, exec_timeout_s) == 316);
constexpr std::size_t kKnownSizes[] = {300, 2232, 2240};

[[noreturn]] void bad_variable(const char* name, const char* value, const char* expected) {
  refuse(HCCL_E_PARA, "EI0001: environment variable %s is \"%s\", expected %s", name, value, expected);
}

std::int64_t number(const char* name, std::int64_t least, std::int64_t most, std::int64_t otherwise) {
  const char* text = std::getenv(name);
  if (!text) return otherwise;
  char* end = nullptr;
  const std::int64_t value = std::strtoll(text, &end, 10);
  if (end == text || *end || value < least || value > most)
    bad_variable(
        name, text,
        text_of("%lld to %lld", static_cast<long long>(least), static_cast<long long>(most)).c_str());
  return value;
}

int deterministic_variable() {
  const char* text = std::getenv("HCCL_DETERMINISTIC");
  if (!text || strcasecmp(text, "false") == 0) return 0;
  if (strcasecmp(text, "true") == 0) return 1;
  if (strcasecmp(text, "strict") != 0) bad_variable("HCCL_DETERMINISTIC", text, "true, false or strict");
  if (soc().generation != 2 && soc().generation != 3)
    bad_variable("HCCL_DETERMINISTIC", text, "no strict on this chip");
  return 2;
}

void check_expansion_mode() {
  const char* text = std::getenv("HCCL_OP_EXPANSION_MODE");
  if (!text) return;
  std::vector<std::string> known{"HOST", "HOST_TS", "AI_CPU", "AIV"};
  if (soc().generation == 3) known = {"AI_CPU", "AICPU_CacheDisable", "AIV"};
  if (soc().generation == 950) known = {"AICPU_TS", "AI_CPU", "AIV", "CCU_MS", "CCU_SCHED"};
  if (std::find(known.begin(), known.end(), text) == known.end())
    bad_variable("HCCL_OP_EXPANSION_MODE", text, "a mode of this chip");
}

void check_algorithm() {
  const char* text = std::getenv("HCCL_ALGO");
  if (text && !std::strstr(text, "level0:")) bad_variable("HCCL_ALGO", text, "level0:NA;level1:<algorithm>");
}

HcclSettings read_environment() {
  HcclSettings settings;
  settings.buffer_mib = number("HCCL_BUFFSIZE", 1, 1 << 20, 200);
  settings.deterministic = deterministic_variable();
  settings.exec_timeout_s = number("HCCL_EXEC_TIMEOUT", 0, 2147483647, 1836);
  settings.connect_timeout_s = number("HCCL_CONNECT_TIMEOUT", 120, 7200, 120);
  check_expansion_mode();
  check_algorithm();
  return settings;
}

std::atomic<int> set_deterministic{-1};

}  // namespace

const HcclSettings& environment_settings() {
  struct Parsed {
    HcclSettings settings;
    Refusal refusal{0, {}};
  };
  static const Parsed parsed = [] {
    Parsed once;
    try {
      once.settings = read_environment();
    } catch (const Refusal& refusal) {
      once.refusal = refusal;
    }
    return once;
  }();
  if (parsed.refusal.code) throw Refusal(parsed.refusal);
  return parsed.settings;
}

int process_deterministic() { return set_deterministic; }

HcclSettings settings_of(const void* pointer) {
  HcclSettings settings = environment_settings();
  if (process_deterministic() >= 0) settings.deterministic = process_deterministic();
  if (!pointer) return settings;
  std::size_t size = 0;
  std::memcpy(&size, pointer, sizeof size);
  bool known = false;
  for (const std::size_t one : kKnownSizes) known = known || one == size;
  if (!known) refuse(HCCL_E_PARA, "EI0003: the config says it has %zu bytes: expected 300 (version 5)", size);
  CommConfig config{};
  std::memcpy(&config, pointer, std::min(size, sizeof config));
  if (config.magic != kMagic) refuse(HCCL_E_PARA, "EI0003: the config has the magic %#x", config.magic);
  const std::uint32_t most = size == 300 ? 5 : 10;
  if (config.version < 1 || config.version > most)
    refuse(HCCL_E_PARA, "EI0003: the config of %zu bytes has version %u", size, config.version);
  if (config.buffer_mib != kFollowEnvironment) {
    if (config.buffer_mib < 1) refuse(HCCL_E_PARA, "EI0003: hcclBufferSize is 0 MB");
    settings.buffer_mib = config.buffer_mib;
  }
  if (config.deterministic != kFollowEnvironment) {
    if (config.deterministic > 2)
      refuse(HCCL_E_PARA, "EI0003: hcclDeterministic is %u", config.deterministic);
    if (soc().generation == 950)
      refuse(HCCL_E_PARA, "EI0003: hcclDeterministic is not supported on %s", soc().name.c_str());
    if (config.deterministic == 2 && soc().generation != 2 && soc().generation != 3)
      refuse(HCCL_E_PARA, "EI0003: strict determinism is for A2 and A3");
    settings.deterministic = static_cast<int>(config.deterministic);
  }
  if (config.version >= 2) settings.name.assign(config.name, strnlen(config.name, sizeof config.name));
  if (config.version >= 4 && config.expansion_mode > 6)
    refuse(HCCL_E_PARA, "EI0003: hcclOpExpansionMode is %u", config.expansion_mode);
  if (config.version >= 8 && config.exec_timeout_s >= 0) settings.exec_timeout_s = config.exec_timeout_s;
  return settings;
}

union HcclConfigValue {
  std::int32_t value;
};
ENTRY(hccl, HcclSetConfig, int which, HcclConfigValue value) {
  if (which != 0) refuse(HCCL_E_NOT_SUPPORT, "unknown config %d", which);
  if (value.value < 0 || value.value > 2) refuse(HCCL_E_PARA, "deterministic: expected 0, 1 or 2");
  set_deterministic = value.value;
  return HCCL_SUCCESS;
}
ENTRY(hccl, HcclGetConfig, int which, HcclConfigValue* value) {
  if (!value) refuse(HCCL_E_PTR, "expected a pointer");
  if (which != 0) refuse(HCCL_E_NOT_SUPPORT, "unknown config %d", which);
  value->value =
      process_deterministic() >= 0 ? process_deterministic() : environment_settings().deterministic;
  return HCCL_SUCCESS;
}

}  // namespace ascend_double
