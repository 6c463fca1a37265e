// What is on this machine, for `danceflux doctor`.
#pragma once
#include "backend/plugin.h"

namespace danceflux::cuda {

/// Ready: a device, a driver that is new enough and cuBLASLt. The message names the devices and every vendor
/// library that is missing, the hint what brings it.
void probe(PluginProbe* found);

/// The oldest driver that runs what this plugin was built with, as cudaDriverGetVersion counts: 12080
/// is 12.8.
int oldest_driver(int runtime_version);

}  // namespace danceflux::cuda
