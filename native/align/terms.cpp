#include "align/terms.h"

#include <algorithm>
#include <cmath>

#include "align/numbers.h"
#include "align/pieces.h"

namespace danceflux::align {
namespace {

/// Adds the squares of elements whose first one stands at `position` of the whole tensor.
void add_squares(const float* x, std::size_t count, std::size_t position, std::size_t inner,
                 std::vector<double>& sums) {
  for (std::size_t i = 0; i < count;) {
    const std::size_t at = (position + i) / inner % sums.size();
    if (inner == 1) {  // neighbours belong to neighbouring sums
      const std::size_t run = std::min(sums.size() - at, count - i);
      for (std::size_t k = 0; k < run; ++k) sums[at + k] += static_cast<double>(x[i + k]) * x[i + k];
      i += run;
      continue;
    }
    const std::size_t run = std::min(inner - (position + i) % inner, count - i);
    double sum = 0;
    for (std::size_t k = 0; k < run; ++k) sum += static_cast<double>(x[i + k]) * x[i + k];
    sums[at] += sum;
    i += run;
  }
}

}  // namespace

std::vector<double> squares_along(const Tensor& tensor, int axis) {
  std::vector<double> sums(static_cast<std::size_t>(tensor.dim(axis)));
  std::size_t inner = 1, position = 0;
  for (int i = tensor.shape().index(axis) + 1; i < tensor.rank(); ++i)
    inner *= static_cast<std::size_t>(tensor.dim(i));
  float block[kBlock];
  for_each_piece(tensor, [&](const std::byte* data, std::size_t elements) {
    for (std::size_t i = 0; i < elements; i += kBlock) {
      const std::size_t now = std::min(kBlock, elements - i);
      to_f32(block, data + i * size_of(tensor.dtype()), tensor.dtype(), now);
      add_squares(block, now, position, inner, sums);
      position += now;
    }
  });
  return sums;
}

const std::vector<double>& Terms::of_weight(const Tensor& weight) {
  Known& known = weights_[weight.address()];
  if (!known.storage || !(known.shape == weight.shape()))
    known = {weight.storage(), weight.shape(), squares_along(weight, 1)};
  return known.squares;
}

double Terms::size(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const bool linear = weight.rank() == 2, windows = weight.rank() == 4 && x.rank() == 4 && out.rank() == 4;
  if ((!linear && !windows) || out.numel() == 0) return 0;
  const int channels = linear ? -1 : 1;  // of x; those of the weight are axis 1 in both
  const std::vector<double>& right = of_weight(weight);
  const std::vector<double> left = squares_along(x, channels);
  double squares = 0;
  for (std::size_t k = 0; k < left.size(); ++k) squares += left[k] * right[k];
  if (windows)
    squares *= static_cast<double>(out.dim(2) * out.dim(3)) / static_cast<double>(x.dim(2) * x.dim(3));
  if (bias) {
    const double rows = static_cast<double>(out.numel()) / static_cast<double>(bias.numel());
    for (const double square : squares_along(bias, 0)) squares += rows * square;
  }
  return std::sqrt(squares);
}

}  // namespace danceflux::align
