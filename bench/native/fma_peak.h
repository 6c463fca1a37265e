// How many multiply-adds this machine can do: independent chains in registers, nothing read from memory.
#pragma once
#include <string>

namespace danceflux::bench {

/// GFLOP/s of `threads` threads together, in vectors of that instruction set ("" the best): the best of many
/// short windows.
double fma_peak(int threads, const std::string& isa);

}  // namespace danceflux::bench
