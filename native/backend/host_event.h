// An event of work that threads of the host do: what Event::handle points to where the device is the CPU.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>

#include "backend/backend.h"

namespace danceflux {

class HostEvent {
 public:
  /// The work is done, or has failed with `error`. Once, by whoever does it.
  void finish(std::exception_ptr error) noexcept;
  /// Blocks until then and throws the failure. Throws ERR_ABORTED when the job of this thread is stopped
  /// meanwhile; the work itself goes on.
  void wait() const;
  bool done() const { return done_.load(std::memory_order_acquire) != 0; }

 private:
  std::atomic<std::uint32_t> done_{0};
  std::exception_ptr error_;
};

/// Waits for an event that a host engine made. An empty one is in the past.
inline void wait_for_host(const Event& event) {
  if (event.handle) static_cast<const HostEvent*>(event.handle.get())->wait();
}

}  // namespace danceflux
