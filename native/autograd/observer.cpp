#include "autograd/observer.h"

#include <utility>

namespace danceflux {
namespace {

thread_local Observer* current_observer = nullptr;

std::string join(const std::string& prefix, const std::string& name) {
  if (prefix.empty()) return name;
  return name.empty() ? prefix : prefix + "." + name;
}

}  // namespace

Observer* Observer::current() { return current_observer; }

void Observer::install(Observer* observer) { current_observer = observer; }

std::string Observer::base_name(const char* op) const {
  return given_.empty() ? join(block_.empty() ? root_ : block_, op) : join(root_, given_);
}

std::string Observer::upcoming(const char* op) const {
  const std::string name = base_name(op);
  const auto found = counts_.find(name);
  return found == counts_.end() || found->second == 0 ? name : name + "." + std::to_string(found->second);
}

std::string Observer::next_name(const char* op) {
  std::string name = base_name(op);
  given_.clear();
  const int again = counts_[name]++;
  if (again > 0) name += "." + std::to_string(again);
  return name;
}

void Observer::op(const char* op, const Tensor& out, std::span<const Tensor> inputs) {
  if (level_ != Level::op || !registers()) return;
  const std::string name = next_name(op);
  known_[out.id()] = {name, block_, op, 0};
  if (!shows()) return;
  int index = 0;
  for (const Tensor& input : inputs) {
    if (input) see({name, block_, op, SightRole::input, index, input});
    ++index;
  }
  see({name, block_, op, SightRole::output, 0, out});
}

void Observer::block(SightRole role, int index, const Tensor& tensor) {
  if (!registers() || !tensor) return;
  const std::string& name = block_.empty() ? root_ : block_;
  // At op level the op that made it is told already, under its own name; its gradient too.
  if (role == SightRole::output) known_.try_emplace(tensor.id(), Named{name, block_, "block", index});
  if (shows()) see({name, block_, "block", role, index, tensor});
}

void Observer::gradient(std::uint64_t id, const Tensor& tensor) {
  if (muted_ > 0 || !tensor) return;
  const auto found = known_.find(id);
  if (found == known_.end()) return;
  const auto& [name, block, op, index] = found->second;
  see({name, block, op, SightRole::gradient, index, tensor});
}

void Observer::restart() {
  known_.clear();
  counts_.clear();
}

void BlockScope::enter(const std::string& name, Kind kind) {
  outer_root_ = observer_->root_;
  outer_block_ = observer_->block_;
  const int before = kind == Kind::model ? observer_->counts_[name]++ : 0;
  outer_counts_ = std::exchange(observer_->counts_, {});
  if (kind != Kind::block) {
    observer_->root_ = before > 0 ? name + "." + std::to_string(before) : name;
    observer_->block_.clear();
  } else {
    observer_->block_ = join(observer_->root_, name);
  }
}

void BlockScope::leave() {
  observer_->root_ = outer_root_;
  observer_->block_ = outer_block_;
  observer_->counts_ = std::move(outer_counts_);
}

BackwardScope::BackwardScope(Observer* observer) : observer_(observer) {
  if (!observer_) return;
  outer_backward_ = std::exchange(observer_->backward_, true);
  outer_replaying_ = std::exchange(observer_->replaying_, false);
}

BackwardScope::~BackwardScope() {
  if (!observer_) return;
  observer_->backward_ = outer_backward_;
  observer_->replaying_ = outer_replaying_;
}

ReplayScope::ReplayScope() : observer_(Observer::current()) {
  if (observer_) outer_ = std::exchange(observer_->replaying_, true);
}

ReplayScope::~ReplayScope() {
  if (observer_) observer_->replaying_ = outer_;
}

}  // namespace danceflux
