// From pictures to scores: what CLIP-like scorers do around the towers.
//
// Legend: B batch, h and w the picture, P width of the shared space.
#pragma once
#include <span>
#include <vector>

#include "models/image_math.h"

namespace danceflux::models {

struct ScorerPreprocess {
  enum class Fit : std::uint8_t { longest_side_padded, shortest_side_cropped };
  std::int64_t size = 224;
  Fit fit = Fit::shortest_side_cropped;
  /// Round to 8 bits first, as a picture that went through a file.
  bool quantize = true;
  ChannelStatistics statistics = kClipStatistics;
};

/// Pictures [B, 3, h, w] in -1..1 -> pixel values [B, 3, size, size].
Tensor prepare(const Tensor& images, const ScorerPreprocess& preprocess);
/// Cosine of image row i [B, P] with text row rows[i]; no scale.
std::vector<float> cosine_scores(const Tensor& images, const Tensor& text,
                                 std::span<const std::int64_t> rows);

}  // namespace danceflux::models
