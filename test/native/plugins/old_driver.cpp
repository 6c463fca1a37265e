// The vendor's driver is older than its libraries.
#include <cstdio>

#include "backend/plugin.h"

namespace {
void probe(danceflux::PluginProbe* found) {
  found->state = danceflux::ProbeState::driver_too_old;
  std::snprintf(found->message, sizeof found->message, "%s", "expected driver 7.1 or newer, got 6.0");
  std::snprintf(found->hint, sizeof found->hint, "%s", "update the driver");
}
danceflux::Backend* create(std::int32_t, const char*) { return nullptr; }
const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI, "old_driver", probe, create};
}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
