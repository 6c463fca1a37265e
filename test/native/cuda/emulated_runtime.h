// What a test may plant in the emulated CUDA runtime (stand_in/cuda_runtime_api.h).
#pragma once
#include <atomic>
#include <cstddef>

#include "stand_in/cuda_runtime_api.h"

namespace emulated {

struct Machine {
  std::atomic<int> devices{1};
  std::atomic<int> driver_version{13000};
  /// Bytes that the device has; what is allocated counts against it.
  std::atomic<std::size_t> memory{std::size_t{4} << 30};
  std::atomic<std::size_t> taken{0};
  /// Given by every call that can fail, until it is cudaSuccess again: a lost device.
  std::atomic<cudaError_t> sticky{cudaSuccess};
  /// Host waits (stream, event) so far.
  std::atomic<int> waits{0};
  /// Graphs started so far.
  std::atomic<int> graph_launches{0};
};
Machine& machine();

}  // namespace emulated
