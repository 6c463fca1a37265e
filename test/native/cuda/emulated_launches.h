// How many kernels the emulated device has run; apart from emulated_device.h, whose words of the language tests do not
// want.
#pragma once
#include <cstdint>

namespace emulated {
/// Launches so far, of all threads of the process.
std::uint64_t launches();
}  // namespace emulated
