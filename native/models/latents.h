// Packed latents and pictures.
//
// Legend: B batch, C latent channels, h, w latent size, L = h/2 * w/2 tokens.
#pragma once
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace danceflux::models {

/// [B, C, h, w] -> [B, L, 4C]; a token's channels are ordered (channel, row in patch, column in patch), as
/// FLUX packs them.
Tensor pack_latents(const Tensor& z);
/// [B, rows * columns, 4C] -> [B, C, 2 rows, 2 columns]
Tensor unpack_latents(const Tensor& packed, std::int64_t rows, std::int64_t columns);
/// [B, 3, h, w] about -1..1 -> B * h * w * 3 bytes, row-major RGB: round half to even of 255 * clamp(x / 2 +
/// 0.5), as diffusers makes pictures. NaN becomes 0.
std::vector<std::uint8_t> to_rgb8(const Tensor& images);

}  // namespace danceflux::models
