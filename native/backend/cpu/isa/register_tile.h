// The size of the register tile of matrix products.
#pragma once
#include "backend/cpu/simd.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

// As many sums as the register file holds beside one row of B and a broadcast element of A.
#if DANCEFLUX_ISA_AVX512
constexpr int kRows = 12, kVectors = 2;
#elif DANCEFLUX_ISA_AVX2
constexpr int kRows = 6, kVectors = 2;
#elif DANCEFLUX_ISA_NEON
constexpr int kRows = 8, kVectors = 3;
#else
constexpr int kRows = 4, kVectors = 2;
#endif
constexpr int kColumns = kVectors * kLanes;

}  // namespace
}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
