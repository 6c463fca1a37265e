// A caching allocator: memory that was freed is kept by size and handed out again, so that a training step in
// its steady state asks the system for nothing.
#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"

namespace danceflux {

/// Thread safe. `take` and `give` are the system's functions (malloc, cudaMallocAsync, aclrtMalloc); take
/// returns null when there is no more.
class Pool {
 public:
  using Take = std::function<void*(std::size_t bytes)>;
  using Give = std::function<void(void* address, std::size_t bytes)>;
  Pool(Take take, Give give);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// At least `bytes`, rounded up to a size class. On exhaustion gives the cache back and tries once more;
  /// then throws ERR_MEMORY with what was asked, used and held.
  void* allocate(std::size_t bytes);
  /// `bytes` as asked of allocate.
  void release(void* address, std::size_t bytes) noexcept;
  void trim();
  MemoryStats stats() const;
  void reset_peak();

 private:
  static std::size_t size_class(std::size_t bytes);
  void give_cache_back();

  Take take_;
  Give give_;
  mutable std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> free_;
  MemoryStats stats_;
};

}  // namespace danceflux
