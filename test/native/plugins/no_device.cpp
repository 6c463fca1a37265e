// The vendor's stack works, and there is no device.
#include <cstdio>

#include "backend/plugin.h"

namespace {
void probe(danceflux::PluginProbe* found) {
  found->state = danceflux::ProbeState::no_device;
  std::snprintf(found->message, sizeof found->message, "%s", "found driver 7.1 and no device");
  std::snprintf(found->hint, sizeof found->hint, "%s", "is the device passed into the container?");
}
danceflux::Backend* create(std::int32_t, const char*) { return nullptr; }
const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI, "no_device", probe, create};
}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
