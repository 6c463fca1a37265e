// What attention needs of an instruction set beside matrix products. Plain data and function pointers: included by isa/*.cpp.
#pragma once
#include <cstdint>

namespace danceflux::cpu {

struct AttentionKernels {
};

}  // namespace danceflux::cpu
