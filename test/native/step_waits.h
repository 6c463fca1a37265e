// For tests of several kinds of device: steps of a policy ask for all their work before anybody waits.
#pragma once
#include <functional>

#include "backend/backend.h"

namespace danceflux::test {

/// Fails unless a sampling step and a policy step leave `waits()`, the host's waits for `device` so far, as
/// it was, and reading their numbers does not. Also that the policy step finds the probabilities that the
/// sampling step found.
void check_steps_wait_for_nothing(Backend& device, const std::function<std::uint64_t()>& waits);

}  // namespace danceflux::test
