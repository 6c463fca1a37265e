// A plugin that works: two devices, each the CPU backend under another name. Its option "fail" throws, to see
// exceptions cross.
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/options.h"
#include "backend/plugin.h"
#include "core/error.h"

namespace {
void probe(danceflux::PluginProbe* found) {
  found->state = danceflux::ProbeState::ready;
  found->devices = 2;
  std::snprintf(found->message, sizeof found->message, "two twins of the cpu");
}

danceflux::Backend* create(std::int32_t index, const char* options_json) {
  const danceflux::DeviceOptions options = danceflux::DeviceOptions::parse(options_json);
  options.allow_only("twin", {"fail"});
  const std::string how = options.text("fail", "");
  if (how == "engine")
    throw danceflux::Error("ERR_TWIN", "twin: expected no failure, got one", "ask for none");
  if (how == "standard") return reinterpret_cast<danceflux::Backend*>(std::vector<char>(1).at(7));
  if (how == "nothing") return nullptr;
  return new danceflux::cpu::CpuBackend({index + 1, ""});
}
const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI, "twin", probe, create};
}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
