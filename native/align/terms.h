// How large the terms of a product are: what its rounding errors are to be held against. A flat picture times
// a filter that sums to zero leaves almost nothing, and the roundings of the terms stay.
#pragma once
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/tensor.h"

namespace danceflux::align {

/// The norm that a product would have if its terms had signs of chance: the root of the sum, over all
/// outputs, of the squared terms of each.
///   linear: x [..., K], weight [N, K], out [..., N]: terms x[m, k] w[n, k], and the bias [N]
///   conv2d: x [B, C, h, w], weight [O, C, kh, kw], out [B, O, h', w']: every pixel counts as if all windows
///   that may reach it did
/// Where terms do not cancel this is about the norm of `out`; where they add up it is less.
class Terms {
 public:
  /// NaN when something is not finite; 0 for shapes that are neither.
  double size(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias);
  /// Weights may have changed: what was remembered of them is forgotten.
  void restart() { weights_.clear(); }

 private:
  struct Known {
    std::shared_ptr<Storage> storage;  // held, so that nothing else comes to lie there
    Shape shape;
    std::vector<double> squares;
  };
  const std::vector<double>& of_weight(const Tensor& weight);

  std::unordered_map<const void*, Known> weights_;  // by address: views come and go
};

/// Sums of squares of a tensor for each place along `axis`.
std::vector<double> squares_along(const Tensor& tensor, int axis);

}  // namespace danceflux::align
