// Sums over samples in one fixed tree, so that the bits of a sum do not depend on where it is cut into ranks.
//
// The tree of n samples: while the number is even, two halves; an odd number is summed from left to right. So
// of n = m 2^k samples (m odd) runs of m are summed first, and the runs in pairs. Any 2^j ranks, j <= k, that
// have n / 2^j consecutive samples each cut it at nodes; the levels above are the communicator's.
#pragma once
#include <cstdint>
#include <vector>

#include "ops/ops.h"

namespace danceflux::train {

/// One sum that is being made. Merges like a binary counter: k + 1 tensors at most beside the sample that is
/// being gathered.
class SampleTree {
 public:
  /// Takes the next of `samples` terms, given away. Returns the sum after the last one, nothing before.
  /// Throws ERR_OPTION when `samples` changes on the way.
  Tensor add(Tensor term, std::int64_t samples);
  /// Memory that came free in merges, to be used for the next term; undefined if there is none.
  Tensor spare();
  /// Terms taken since the last sum.
  std::int64_t taken() const { return taken_; }
  void clear();
  std::size_t bytes() const;

 private:
  void merge(const Tensor& sum, Tensor& earlier);

  Tensor run_;                  // the terms of an odd run so far
  std::vector<Tensor> levels_;  // level i: a whole subtree of 2^i runs that waits for its neighbour
  std::vector<Tensor> spare_;
  std::int64_t taken_ = 0, samples_ = 0;
};

}  // namespace danceflux::train
