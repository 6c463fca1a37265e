// Compiled against an engine of another time. Everything after the number may lie elsewhere, so nothing else
// is filled in.
#include "backend/plugin.h"

namespace {
const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI + 41, nullptr, nullptr, nullptr};
}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
