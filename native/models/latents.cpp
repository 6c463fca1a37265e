#include "models/latents.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/ops.h"

namespace danceflux::models {

Tensor pack_latents(const Tensor& z) {
  require(z.rank() == 4 && z.dim(2) % 2 == 0 && z.dim(3) % 2 == 0, "ERR_SHAPE",
          "pack_latents: expected [B, C, h, w] with even h and w, got ", z.shape());
  const std::int64_t batch = z.dim(0), channels = z.dim(1), rows = z.dim(2) / 2, columns = z.dim(3) / 2;
  const Tensor patches = ops::reshape(z, {batch, channels, rows, 2, columns, 2});
  return ops::reshape(ops::permute(patches, {0, 2, 4, 1, 3, 5}), {batch, rows * columns, channels * 4});
}

Tensor unpack_latents(const Tensor& packed, std::int64_t rows, std::int64_t columns) {
  require(packed.rank() == 3 && packed.dim(1) == rows * columns && packed.dim(2) % 4 == 0, "ERR_SHAPE",
          "unpack_latents: expected [B, ", rows * columns, ", 4C], got ", packed.shape());
  const std::int64_t batch = packed.dim(0), channels = packed.dim(2) / 4;
  const Tensor patches = ops::reshape(packed, {batch, rows, columns, channels, 2, 2});
  return ops::reshape(ops::permute(patches, {0, 3, 1, 4, 2, 5}), {batch, channels, rows * 2, columns * 2});
}

std::vector<std::uint8_t> to_rgb8(const Tensor& images) {
  require(images.rank() == 4 && images.dim(1) == 3, "ERR_SHAPE", "to_rgb8: expected [B, 3, h, w], got ",
          images.shape());
  const std::vector<float> rows = ops::to_host(ops::permute(images, {0, 2, 3, 1}));
  std::vector<std::uint8_t> bytes(rows.size());
  std::transform(rows.begin(), rows.end(), bytes.begin(), [](float value) {
    const float level = std::clamp(value / 2 + 0.5f, 0.0f, 1.0f);
    return std::isnan(level) ? std::uint8_t{0} : static_cast<std::uint8_t>(std::nearbyint(level * 255));
  });
  return bytes;
}

}  // namespace danceflux::models
