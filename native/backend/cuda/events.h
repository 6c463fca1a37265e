// What Event::handle points to where the device is CUDA.
#pragma once
#include <functional>
#include <memory>

#include "backend/cuda/errors.h"

namespace danceflux::cuda {

class StreamEvent {
 public:
  StreamEvent() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "event"); }
  ~StreamEvent() { cudaEventDestroy(event_); }
  StreamEvent(const StreamEvent&) = delete;
  StreamEvent& operator=(const StreamEvent&) = delete;
  cudaEvent_t get() const { return event_; }

  /// Throws when the work before the event has failed; of collectives.
  std::shared_ptr<const std::function<void()>> alive;

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace danceflux::cuda
