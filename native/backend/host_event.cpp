#include "backend/host_event.h"

#include "backend/waiting.h"
#include "core/cancel.h"

namespace danceflux {
namespace {
constexpr std::chrono::microseconds kSpin{30};
// How soon a waiting job notices that it was stopped.
constexpr std::chrono::milliseconds kSlice{20};
}  // namespace

void HostEvent::finish(std::exception_ptr error) noexcept {
  error_ = std::move(error);
  done_.store(1, std::memory_order_release);
  wake_all(done_);
}

void HostEvent::wait() const {
  if (!spin_until(kSpin, [&] { return done(); })) {
    while (!done()) {
      throw_if_cancelled();
      sleep_while(done_, 0, kSlice);
    }
  }
  if (error_) std::rethrow_exception(error_);
}

}  // namespace danceflux
