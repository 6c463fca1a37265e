#include "emulated_cuda.h"

#include <dlfcn.h>

#include <cstdlib>

#include "backend/cuda/collective.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/probe.h"
#include "core/error.h"
#include "emulated_runtime.h"

namespace danceflux::test {
namespace {

constexpr std::size_t kCudnn = 92400;

/// Once: other threads may read the environment later.
void name_libraries() {
  static const int done = setenv("DANCEFLUX_CUDA_LIBRARIES", DANCEFLUX_FAKE_CUDA, 1);
  static_cast<void>(done);
}

}  // namespace

std::shared_ptr<Backend> open_emulated_cuda(const std::string& options_json) {
  name_libraries();
  return std::make_shared<cuda::CudaBackend>(0, cuda::Options::parse(options_json));
}

std::unique_ptr<CommunicatorSetup> emulated_nccl_setup(const std::shared_ptr<Backend>& device,
                                                       const CommunicatorOptions& options) {
  return cuda::make_nccl_setup(device, options);
}

PluginProbe probe_emulated_cuda() {
  name_libraries();
  PluginProbe found;
  cuda::probe(&found);
  return found;
}

EmulatedMachine::EmulatedMachine() = default;
EmulatedMachine::~EmulatedMachine() {
  devices(1);
  driver(13000);
  memory(std::size_t{4} << 30);
  sticky_error(0);
  cudnn(kCudnn);
}
void EmulatedMachine::devices(int count) { emulated::machine().devices = count; }
void EmulatedMachine::driver(int version) { emulated::machine().driver_version = version; }
void EmulatedMachine::memory(std::size_t bytes) { emulated::machine().memory = bytes; }
void EmulatedMachine::sticky_error(int error) {
  emulated::machine().sticky = static_cast<cudaError_t>(error);
  cudaGetLastError();  // what the calls before left is not of those to come
}
void EmulatedMachine::cudnn(std::size_t version, unsigned refused) {
  emulated_cudnn().version = version;
  emulated_cudnn().refused = refused;
}
int EmulatedMachine::waits() const { return emulated::machine().waits; }

std::uint64_t emulated_graph_launches() {
  return static_cast<std::uint64_t>(emulated::machine().graph_launches);
}
FakeCudnn& emulated_cudnn() {
  static FakeCudnn& found = *[] {
    void* library = dlopen(DANCEFLUX_FAKE_CUDA "/libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    const auto get = reinterpret_cast<FakeCudnn* (*)()>(library ? dlsym(library, "fake_cudnn") : nullptr);
    require(get != nullptr, "ERR_CUDA", "expected the stand-in for cuDNN in " DANCEFLUX_FAKE_CUDA);
    return get();
  }();
  return found;
}

std::uint64_t emulated_launches() { return emulated::launches(); }
std::uint64_t emulated_products() { return emulated::products(); }

}  // namespace danceflux::test
