// How far each rank has come, for engines whose library does not say who is missing: heartbeats of the
// rendezvous carry it, and whoever waits in vain names the rank that is behind.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace danceflux {

/// Calls are counted from 1. From any thread.
class CollectiveProgress {
 public:
  /// This rank is ready for call number `call`, and so is what its device computed before.
  void reach(std::uint64_t call) {
    if (call > reached_) reached_ = call;
  }
  std::uint64_t reached() const { return reached_; }

  /// What the rendezvous heard last: `ranks` (or some of them) had reached `least` calls, all others more.
  void heard(std::uint64_t least, std::vector<int> ranks) {
    const std::lock_guard lock(mutex_);
    least_ = least;
    ranks_ = std::move(ranks);
  }

  /// Who has not come to `call`, in words. Old news, by which `self` is behind as well, say nothing.
  std::string missing(std::uint64_t call, int self) const {
    const std::lock_guard lock(mutex_);
    if (ranks_.empty() || least_ >= call || std::find(ranks_.begin(), ranks_.end(), self) != ranks_.end())
      return "one of them did not come, or cannot be reached";
    std::ostringstream text;
    text << (ranks_.size() == 1 ? "rank " : "ranks ");
    for (std::size_t i = 0; i < ranks_.size(); ++i) text << (i ? ", " : "") << ranks_[i];
    text << " did not come, last heard of at call " << least_;
    return text.str();
  }

 private:
  std::atomic<std::uint64_t> reached_{0};
  mutable std::mutex mutex_;
  std::uint64_t least_ = 0;
  std::vector<int> ranks_;
};

}  // namespace danceflux
