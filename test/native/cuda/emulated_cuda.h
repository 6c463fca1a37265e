// The CUDA backend on the host: its own sources, with an emulated device and libraries that do on the host
// what they are told (fake_*.cpp). Tests include nothing else of it.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "backend/communicator.h"
#include "backend/plugin.h"
#include "fake_cudnn_controls.h"

namespace danceflux::test {

/// Options as a user types them (native/backend/cuda/options.h).
std::shared_ptr<Backend> open_emulated_cuda(const std::string& options_json = "{}");
std::unique_ptr<CommunicatorSetup> emulated_nccl_setup(const std::shared_ptr<Backend>& device,
                                                       const CommunicatorOptions& options);
PluginProbe probe_emulated_cuda();

/// The machine that is emulated, from here to the end of the scope.
class EmulatedMachine {
 public:
  EmulatedMachine();
  ~EmulatedMachine();
  void devices(int count);
  /// As cudaDriverGetVersion counts; 0: no driver.
  void driver(int version);
  void memory(std::size_t bytes);
  /// Every call fails with this error from now on; 0: none does.
  void sticky_error(int error);
  /// Host waits for the device so far.
  int waits() const;
  /// What devices opened from here on are offered.
  void cudnn(std::size_t version, unsigned refused = 0);
};

/// Graphs that the emulated device has started, of all threads.
std::uint64_t emulated_graph_launches();
/// The stand-in for libcudnn.so.9 that devices use.
FakeCudnn& emulated_cudnn();

/// Kernels that the emulated device has run, and products [16, 16] x [16, 8] of its tensor cores, of all
/// threads.
std::uint64_t emulated_launches();
std::uint64_t emulated_products();

}  // namespace danceflux::test
