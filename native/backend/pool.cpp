#include "backend/pool.h"

#include <algorithm>
#include <bit>

#include "core/error.h"

namespace danceflux {

Pool::Pool(Take take, Give give) : take_(std::move(take)), give_(std::move(give)) {}

Pool::~Pool() { give_cache_back(); }

// Eight classes per power of two: at most 12.5 % is wasted, and tensors of nearly one size share a class.
std::size_t Pool::size_class(std::size_t bytes) {
  constexpr std::size_t kSmallest = 256;
  if (bytes <= kSmallest) return kSmallest;
  const std::size_t step = std::max<std::size_t>(std::bit_floor(bytes - 1) / 8, kSmallest);
  return (bytes + step - 1) / step * step;
}

void* Pool::allocate(std::size_t bytes) {
  const std::size_t size = size_class(bytes);
  const std::lock_guard lock(mutex_);
  ++stats_.allocations;
  void* address = nullptr;
  if (auto slot = free_.find(size); slot != free_.end() && !slot->second.empty()) {
    address = slot->second.back();
    slot->second.pop_back();
  } else {
    ++stats_.system_allocations;
    address = take_(size);
    if (!address) {
      give_cache_back();
      address = take_(size);
    }
    if (!address) {
      throw Error("ERR_MEMORY",
                  "allocate: expected " + std::to_string(size) + " bytes, got none; " +
                      std::to_string(stats_.used) + " bytes in use, " + std::to_string(stats_.held) + " held",
                  "use a smaller batch or resolution, block recompute, or weights in bf16");
    }
    stats_.held += size;
  }
  stats_.used += size;
  stats_.peak = std::max(stats_.peak, stats_.used);
  return address;
}

void Pool::release(void* address, std::size_t bytes) noexcept {
  const std::size_t size = size_class(bytes);
  const std::lock_guard lock(mutex_);
  stats_.used -= size;
  try {
    free_[size].push_back(address);
  } catch (...) {  // no memory to remember it by: give it back instead
    give_(address, size);
    stats_.held -= size;
  }
}

void Pool::trim() {
  const std::lock_guard lock(mutex_);
  give_cache_back();
}

void Pool::give_cache_back() {
  for (auto& [size, addresses] : free_) {
    for (void* address : addresses) {
      give_(address, size);
      stats_.held -= size;
    }
  }
  free_.clear();
}

MemoryStats Pool::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void Pool::reset_peak() {
  const std::lock_guard lock(mutex_);
  stats_.peak = stats_.used;
}

}  // namespace danceflux
