// What measuring one tensor and measuring a pair share.
#pragma once
#include <cstddef>

#include "core/dtype.h"

// Compiled for wider vectors too; which one runs is decided when the library is loaded, by what the processor
// has, not by who made it. Sums have fixed lanes and nothing is contracted: the bits are the same in all.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define DANCEFLUX_WIDER __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DANCEFLUX_WIDER
#endif

namespace danceflux::align {

inline constexpr std::size_t kBlock = 1024;  // elements that are looked at together
inline constexpr std::size_t kLanes = 16;    // of a sum

/// The lanes of a sum come together in one order: halves, quarters, ...
template <class Number>
Number total(const Number* lanes) {
  Number left[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) left[i] = lanes[i];
  for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::size_t i = 0; i < width; ++i) left[i] += left[i + width];
  }
  return left[0];
}

/// `count` elements of any dtype as f32.
void to_f32(float* out, const void* data, DType dtype, std::size_t count);
bool all_finite(const float* x, std::size_t count);

}  // namespace danceflux::align
