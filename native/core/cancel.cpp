#include "core/cancel.h"

#include "core/error.h"

namespace danceflux {
namespace {
thread_local const std::atomic<bool>* current_flag = nullptr;
}

CancelScope::CancelScope(const std::atomic<bool>* flag) : outer_(current_flag) { current_flag = flag; }

CancelScope::~CancelScope() { current_flag = outer_; }

void throw_if_cancelled() {
  if (current_flag && current_flag->load(std::memory_order_relaxed))
    fail("ERR_ABORTED", "the job was stopped");
}

}  // namespace danceflux
