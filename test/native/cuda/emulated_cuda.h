// The CUDA backend on the host: its own sources, with an emulated device and libraries that do on the host what they are
// told (fake_*.cpp).
#pragma once
#include <memory>
#include <string>

#include "backend/backend.h"

namespace danceflux::test {

/// Options as a user types them (native/backend/cuda/options.h).
std::shared_ptr<Backend> open_emulated_cuda(const std::string& options_json = "{}");

}  // namespace danceflux::test
