// How a running job is told to stop: a flag that the device thread looks at between ops.
#pragma once
#include <atomic>

namespace danceflux {

/// While it lives, ops on this thread throw ERR_ABORTED once `flag` is set.
class CancelScope {
 public:
  explicit CancelScope(const std::atomic<bool>* flag);
  ~CancelScope();
  CancelScope(const CancelScope&) = delete;
  CancelScope& operator=(const CancelScope&) = delete;

 private:
  const std::atomic<bool>* outer_;
};

/// Throws ERR_ABORTED when the job of this thread was asked to stop.
void throw_if_cancelled();

}  // namespace danceflux
