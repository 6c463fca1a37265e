#include "train/sample_tree.h"

#include "core/error.h"

namespace danceflux::train {

Tensor SampleTree::add(Tensor term, std::int64_t samples) {
  require(samples > 0 && (taken_ == 0 || samples == samples_), "ERR_OPTION", "gradients: expected ",
          taken_ == 0 ? 1 : samples_, " samples", taken_ == 0 ? " or more" : "", " in an update, got ",
          samples);
  samples_ = samples;
  std::int64_t odd = samples;
  while (odd % 2 == 0) odd /= 2;
  const std::int64_t place = taken_ % odd;
  taken_ = (taken_ + 1) % samples;
  if (place > 0) merge(term, run_);
  if (place + 1 < odd) {
    run_ = std::move(term);
    return {};
  }
  std::size_t level = 0;
  for (; level < levels_.size() && levels_[level]; ++level) merge(term, levels_[level]);
  if (taken_ == 0) return term;
  if (level == levels_.size()) levels_.emplace_back();
  levels_[level] = std::move(term);
  return {};
}

// Addition of two numbers does not care about their order.
void SampleTree::merge(const Tensor& sum, Tensor& earlier) {
  ops::add_(sum, earlier);
  spare_.push_back(std::move(earlier));
  earlier = {};
}

Tensor SampleTree::spare() {
  if (spare_.empty()) return {};
  Tensor tensor = std::move(spare_.back());
  spare_.pop_back();
  return tensor;
}

void SampleTree::clear() {
  run_ = {};
  levels_.clear();
  spare_.clear();
  taken_ = 0;
}

std::size_t SampleTree::bytes() const {
  std::size_t all = run_ ? run_.bytes() : 0;
  for (const auto* list : {&levels_, &spare_}) {
    for (const Tensor& tensor : *list) all += tensor ? tensor.bytes() : 0;
  }
  return all;
}

}  // namespace danceflux::train
