// What scorers do to pictures before they look: resize, pad, crop, normalise. On the device, as products with
// host-made matrices.
//
// Legend: B batch, C channels, h and w the picture.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace danceflux::models {

/// Mean and standard deviation per channel, for pictures in 0..1.
struct ChannelStatistics {
  std::array<float, 3> mean, deviation;
};
/// What every CLIP was trained with.
inline constexpr ChannelStatistics kClipStatistics{{0.48145466f, 0.4578275f, 0.40821073f},
                                                   {0.26862954f, 0.26130258f, 0.27577711f}};

/// [to, from] row-major: cubic convolution (Keys 1981, a = -0.5), widened when shrinking so that it does not
/// alias, weights of each row summing to 1. The same as torchvision's resize of float tensors with antialias.
std::vector<float> bicubic_matrix(std::int64_t from, std::int64_t to);
/// [B, C, h, w] -> [B, C, rows, cols]; not clamped afterwards.
Tensor resize_bicubic(const Tensor& images, std::int64_t rows, std::int64_t cols);
/// Longest side to `size`, then zeros around the picture, centred (one more to the right and below):
/// [B, C, size, size]. This is how HPSv2 prepares pictures (which however leaves a picture whose longest side
/// is `size` already unpadded, and so unfit for its model).
Tensor resize_max_size_pad(const Tensor& images, std::int64_t size);
/// Shortest side to `size`, then the middle [B, C, size, size]. This is how CLIP-like scorers prepare
/// pictures.
Tensor resize_short_center_crop(const Tensor& images, std::int64_t size);
/// (images - mean) / deviation, images [B, 3, h, w].
Tensor normalise(const Tensor& images, const ChannelStatistics& statistics);

}  // namespace danceflux::models
