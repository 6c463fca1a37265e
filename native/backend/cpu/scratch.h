// What a CpuBackend keeps between calls: the kernels it chose and memory for packed panels.
#pragma once
#include <cstddef>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa_select.h"

namespace danceflux::cpu {

/// Memory that only grows, aligned to a page so that packed panels never share a cache line. Contents are not
/// kept on growth.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  /// Throws ERR_MEMORY.
  void* reserve(std::size_t bytes);
  void* data() const { return address_; }

 private:
  void* address_ = nullptr;
  std::size_t bytes_ = 0;
};

/// The kernels in use and the memory that they pack into.
struct Workspace {
  Workspace(const IsaKernels& isa, int threads);
  const IsaKernels& kernels;
  std::int64_t second_cache = std::int64_t{1}
                              << 19;  // bytes per core; a guess where the system does not tell
  Buffer shared;                      // filled by all threads, read by all
  std::vector<Buffer> workers;        // one per thread, by the worker number that ThreadPool hands to a task
  /// Every worker's buffer holds at least `bytes` afterwards. Called before the tasks run: a task may not
  /// throw.
  void reserve_workers(std::size_t bytes);
  float* worker(int number) const {
    return static_cast<float*>(workers[static_cast<std::size_t>(number)].data());
  }
};

struct CpuBackend::Scratch : Workspace {
  using Workspace::Workspace;
};

}  // namespace danceflux::cpu
