// danceflux_cuda.so
#include <memory>

#include "backend/cuda/collective.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/probe.h"
#include "backend/plugin.h"

// Nothing is linked: what is missing shows in the probe, library by library.

namespace {

danceflux::Backend* create(std::int32_t index, const char* options_json) {
  return new danceflux::cuda::CudaBackend(index, danceflux::cuda::Options::parse(options_json));
}

danceflux::CommunicatorSetup* create_communicator(const std::shared_ptr<danceflux::Backend>& device,
                                                  const danceflux::CommunicatorOptions& options) {
  return danceflux::cuda::make_nccl_setup(device, options).release();
}

const danceflux::PluginInfo info{DANCEFLUX_PLUGIN_ABI, "cuda", danceflux::cuda::probe, create,
                                 create_communicator};

}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
