#include "models/flux_tables.h"

#include <cmath>

namespace danceflux::models {

std::vector<float> timestep_embedding(std::span<const float> timesteps) {
  constexpr int half = kTimestepChannels / 2;
  const auto log_period = static_cast<float>(-std::log(10000.0));
  std::vector<float> table(timesteps.size() * kTimestepChannels);
  for (int i = 0; i < half; ++i) {
    const float exponent = log_period * static_cast<float>(i) / half;
    const auto frequency = static_cast<float>(std::exp(static_cast<double>(exponent)));
    for (std::size_t row = 0; row < timesteps.size(); ++row) {
      const double angle = timesteps[row] * frequency;  // rounded to f32, then exact
      float* out = table.data() + row * kTimestepChannels + i;
      out[0] = static_cast<float>(std::cos(angle));
      out[half] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

RopeTable rope_table(int text, int rows, int cols, const std::array<int, 3>& axes, double theta) {
  RopeTable table;
  const auto add_token = [&](const std::array<double, 3>& position) {
    for (std::size_t axis = 0; axis < axes.size(); ++axis) {
      for (int k = 0; k < axes[axis] / 2; ++k) {
        const double angle = position[axis] / std::pow(theta, 2.0 * k / axes[axis]);
        table.cos.push_back(static_cast<float>(std::cos(angle)));
        table.sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  };
  for (int token = 0; token < text; ++token) add_token({0, 0, 0});
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < cols; ++col) add_token({0, static_cast<double>(row), static_cast<double>(col)});
  }
  return table;
}

}  // namespace danceflux::models
