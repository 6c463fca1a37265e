// The patches of a convolution as an operand of a matrix product. Nothing of it exists in memory: it is
// gathered in the pack.
#pragma once
#include <cstdint>

namespace danceflux::cpu {

/// Tap (c, r, s) of pixel (py, px) is image[c][py * stride + origin_y + r * tap_step][px * stride + origin_x
/// + s * tap_step], zero outside. Pixels are numbered row by row, taps as (c * tap_rows + r) * tap_columns +
/// s.
struct Patches {
  const float* image;
  std::int64_t height, width;  // of one channel
  std::int64_t pixel_columns;  // pixels per row
  std::int64_t stride, origin_y, origin_x;
  std::int64_t tap_rows, tap_columns, tap_step;
};

}  // namespace danceflux::cpu
