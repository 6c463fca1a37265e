// What measuring one tensor and measuring a pair share.
#pragma once
#include <cstddef>

#include "core/dtype.h"

// Compiled twice, for machines with wider vectors too; which one runs is decided when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define DANCEFLUX_WIDER __attribute__((target_clones("arch=haswell", "default")))
#else
#define DANCEFLUX_WIDER
#endif

namespace danceflux::align {

/// `count` elements of any dtype as f32.
void to_f32(float* out, const void* data, DType dtype, std::size_t count);
bool all_finite(const float* x, std::size_t count);

}  // namespace danceflux::align
