// Keyed randomness: every normal draw is a pure function of its key, so it is the same on every device, at
// every world size and batch size, and after every resume.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace danceflux {

/// One block of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

/// What a draw is for.
struct NoiseKey {
  std::uint64_t seed = 0;
  std::uint32_t iteration = 0, prompt = 0, sample = 0, timestep = 0, purpose = 0;
};

/// Fills `out` with standard normals: element i depends on (key, i) only. Box-Muller with own polynomials,
/// correctly the same bits on every machine (no libm, no contraction).
void keyed_normal(const NoiseKey& key, std::span<float> out);
/// Fills `out` with numbers uniform in [-1, 1), a pure function of (seed, name, position): how adapters are
/// initialised.
void keyed_uniform(std::span<float> out, std::uint64_t seed, const std::string& name);
/// 64 random bits for (key, index).
std::uint64_t keyed_bits(const NoiseKey& key, std::uint64_t index);

}  // namespace danceflux
