// danceflux_gloo.so
#include <cstdio>

#include "backend/gloo/gloo_engine.h"
#include "backend/plugin.h"

DANCEFLUX_PLUGIN_NEEDS("libgloo.so.0\tGloo 0.5: apt-get install libgloo0 (to build: libgloo-dev)\n")

namespace {

void probe(danceflux::PluginProbe* found) {
  const std::string reason = danceflux::gloo_engine::probe();
  found->state = reason.empty() ? danceflux::ProbeState::ready : danceflux::ProbeState::no_device;
  std::snprintf(found->message, sizeof found->message, "%s",
                reason.empty() ? "Gloo 0.5 over TCP, CPU ranks on many hosts" : reason.c_str());
}

danceflux::CommunicatorSetup* create_communicator(const std::shared_ptr<danceflux::Backend>& device,
                                                  const danceflux::CommunicatorOptions& options) {
  return danceflux::gloo_engine::make_setup(device, options).release();
}

const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI, "gloo", probe, nullptr, create_communicator};

}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
