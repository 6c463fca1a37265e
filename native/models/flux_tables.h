// The numbers FLUX knows of time and place, made on the host.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace danceflux::models {

inline constexpr int kTimestepChannels = 256;

/// Sinusoidal embedding of each number, [count, 256] row-major: cos of t * f_i, then sin, f_i =
/// 10000^(-i/128). Exponents, frequencies and angles are rounded to f32 as in the published code: near 1000
/// an angle is coarse in f32, and the models were trained so. Each is rounded correctly; vectorised libraries
/// are off by an ulp in one frequency or another (PyTorch's CPU in 2 of 128), which turns an angle near 1000
/// by up to 6e-5.
std::vector<float> timestep_embedding(std::span<const float> timesteps);

/// Rotations of the joint sequence, cos and sin [text + rows * cols, K/2] row-major. Text tokens stand at (0,
/// 0, 0), picture tokens at (0, row, col); each axis owns axes[i]/2 adjacent pairs, which turn by position *
/// theta^(-2k / axes[i]). f64, rounded once.
struct RopeTable {
  std::vector<float> cos, sin;
};
RopeTable rope_table(int text, int rows, int cols, const std::array<int, 3>& axes, double theta);

}  // namespace danceflux::models
