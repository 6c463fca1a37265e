#include "models/image_math.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "nn/module.h"
#include "ops/ops.h"

namespace danceflux::models {
namespace {

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

void check_images(const char* op, const Tensor& images, std::int64_t rows, std::int64_t cols) {
  require(images.defined() && images.rank() == 4 && images.numel() > 0, "ERR_SHAPE", op,
          ": expected pictures [B, C, h, w], got ", images.shape());
  require(rows > 0 && cols > 0, "ERR_SHAPE", op, ": expected a size of at least 1 x 1, got ", rows, " x ",
          cols);
}

Tensor zeros(const Tensor& beside, const Shape& shape) {
  return nn::upload_beside(beside, shape, std::vector<float>(static_cast<std::size_t>(shape.numel()), 0.0f));
}

/// Zeros before and after along `axis`, up to `size`.
Tensor pad_centred(const Tensor& x, int axis, std::int64_t size) {
  const std::int64_t missing = size - x.dim(axis);
  if (missing == 0) return x;
  std::vector<Tensor> parts;
  Shape shape = x.shape();
  shape[axis] = missing / 2;
  if (missing / 2 > 0) parts.push_back(zeros(x, shape));
  parts.push_back(x);
  shape[axis] = missing - missing / 2;
  parts.push_back(zeros(x, shape));
  return ops::concat(parts, axis);
}

}  // namespace

std::vector<float> bicubic_matrix(std::int64_t from, std::int64_t to) {
  std::vector<float> matrix(static_cast<std::size_t>(from * to), 0.0f);
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double widen = std::max(scale, 1.0), support = 2 * widen;
  std::vector<double> weights;
  for (std::int64_t i = 0; i < to; ++i) {
    const double center = scale * (static_cast<double>(i) + 0.5);
    const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(center - support + 0.5), 0);
    const auto last = std::min<std::int64_t>(static_cast<std::int64_t>(center + support + 0.5), from);
    weights.clear();
    double sum = 0;
    for (std::int64_t j = first; j < last; ++j) {
      weights.push_back(cubic((static_cast<double>(j) + 0.5 - center) / widen));
      sum += weights.back();
    }
    float* row = matrix.data() + i * from;
    for (std::int64_t j = first; j < last; ++j) {
      row[j] = static_cast<float>(weights[static_cast<std::size_t>(j - first)] / sum);
    }
  }
  return matrix;
}

Tensor resize_bicubic(const Tensor& images, std::int64_t rows, std::int64_t cols) {
  check_images("resize_bicubic", images, rows, cols);
  const std::int64_t h = images.dim(2), w = images.dim(3);
  Tensor x = images;
  if (w != cols) x = ops::matmul(x, nn::upload_beside(x, {cols, w}, bicubic_matrix(w, cols)).transpose(0, 1));
  if (h != rows) x = ops::matmul(nn::upload_beside(x, {rows, h}, bicubic_matrix(h, rows)), x);
  return x;
}

Tensor resize_max_size_pad(const Tensor& images, std::int64_t size) {
  check_images("resize_max_size_pad", images, size, size);
  const double scale =
      static_cast<double>(size) / static_cast<double>(std::max(images.dim(2), images.dim(3)));
  // nearbyint rounds halves to even, as Python's round does
  const auto scaled = [&](std::int64_t side) {
    return std::max<std::int64_t>(
        1, static_cast<std::int64_t>(std::nearbyint(static_cast<double>(side) * scale)));
  };
  const Tensor x = resize_bicubic(images, scaled(images.dim(2)), scaled(images.dim(3)));
  return pad_centred(pad_centred(x, 2, size), 3, size);
}

Tensor resize_short_center_crop(const Tensor& images, std::int64_t size) {
  check_images("resize_short_center_crop", images, size, size);
  const std::int64_t h = images.dim(2), w = images.dim(3), shortest = std::min(h, w);
  const Tensor x = resize_bicubic(images, size * h / shortest, size * w / shortest);
  // torchvision rounds the odd half pixel to even
  const auto start = [&](int axis) {
    return static_cast<std::int64_t>(std::nearbyint(static_cast<double>(x.dim(axis) - size) / 2));
  };
  return ops::contiguous(ops::narrow(ops::narrow(x, 2, start(2), size), 3, start(3), size));
}

Tensor normalise(const Tensor& images, const ChannelStatistics& statistics) {
  require(images.defined() && images.rank() == 4 && images.dim(1) == 3, "ERR_SHAPE",
          "normalise: expected pictures [B, 3, h, w], got ", images.shape());
  const Tensor mean = nn::upload_beside(images, {1, 3, 1, 1}, statistics.mean);
  const Tensor deviation = nn::upload_beside(images, {1, 3, 1, 1}, statistics.deviation);
  return ops::div(ops::sub(images, mean), deviation);
}

}  // namespace danceflux::models
