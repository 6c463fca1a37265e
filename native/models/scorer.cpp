#include "models/scorer.h"

#include "core/error.h"
#include "models/clip.h"
#include "models/latents.h"
#include "ops/ops.h"

namespace danceflux::models {
namespace {

// The levels that a file would hold, as numbers in 0..1 again.
Tensor quantized(const Tensor& images) {
  const std::vector<std::uint8_t> bytes = to_rgb8(images);
  std::vector<float> levels(bytes.begin(), bytes.end());
  for (float& level : levels) level /= 255;
  const Shape shape{images.dim(0), images.dim(2), images.dim(3), 3};
  return ops::contiguous(ops::permute(ops::from_host(backend_of(images), shape, levels), {0, 3, 1, 2}));
}

}  // namespace

Tensor prepare(const Tensor& images, const ScorerPreprocess& preprocess) {
  const Tensor levels = preprocess.quantize ? quantized(images) : ops::affine(images, 0.5f, 0.5f);
  const bool padded = preprocess.fit == ScorerPreprocess::Fit::longest_side_padded;
  const Tensor fitted = padded ? resize_max_size_pad(levels, preprocess.size)
                               : resize_short_center_crop(levels, preprocess.size);
  return normalise(fitted, preprocess.statistics);
}

std::vector<float> cosine_scores(const Tensor& images, const Tensor& text,
                                 std::span<const std::int64_t> rows) {
  require(static_cast<std::int64_t>(rows.size()) == images.dim(0), "ERR_SHAPE",
          "cosine: expected a text row for each of ", images.dim(0), " pictures, got ", rows.size());
  std::vector<Tensor> chosen;
  for (std::int64_t row : rows) chosen.push_back(ops::narrow(text, 0, row, 1));
  const Tensor products = ops::mul(unit_rows(images), unit_rows(ops::concat(chosen, 0)));
  return ops::to_host(ops::sum(products, {1}));
}

}  // namespace danceflux::models
