// Wants two vendor libraries: one that it is linked to and one that it would open itself. Neither can be
// found.
#include "backend/plugin.h"

DANCEFLUX_PLUGIN_NEEDS(
    "libdanceflux_fake_vendor.so.1\tFake toolkit 1: source /opt/fake/set_env.sh\n"
    "libdanceflux_fake_collectives.so.2\tFake collectives 2\n")

extern "C" int fake_vendor_device_count();

namespace {
void probe(danceflux::PluginProbe* found) {
  found->state = danceflux::ProbeState::ready;
  found->devices = fake_vendor_device_count();
}
danceflux::Backend* create(std::int32_t, const char*) { return nullptr; }
const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI, "needy", probe, create};
}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
