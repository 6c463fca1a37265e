// Says another name than its file.
#include <cstdio>

#include "backend/plugin.h"

namespace {
void probe(danceflux::PluginProbe* found) {
  found->state = danceflux::ProbeState::no_device;
  std::snprintf(found->message, sizeof found->message, "%s", "");
  std::snprintf(found->hint, sizeof found->hint, "%s", "");
}
danceflux::Backend* create(std::int32_t, const char*) { return nullptr; }
const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI, "somebody_else", probe, create};
}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
