// How ranks that share a segment wait for each other: progress counters, deadlines, death, abort.
#pragma once
#include <chrono>
#include <string>

#include "backend/cpu/shared_segment.h"

namespace danceflux::cpu {

class RankBoard {
 public:
  RankBoard(SharedSegment segment, int rank, int ranks, double timeout_seconds);
  /// Tells the others that this rank leaves in peace.
  ~RankBoard();
  RankBoard(const RankBoard&) = delete;
  RankBoard& operator=(const RankBoard&) = delete;

  const SharedSegment& segment() const { return segment_; }
  int rank() const { return rank_; }
  int ranks() const { return ranks_; }

  /// Enters this rank's name and waits for all others. Throws ERR_COMMUNICATION at the deadline, ERR_ABORTED
  /// when the job of this thread is stopped.
  void attach();
  /// This rank has come to `value`; all that it wrote before is seen by whoever waited for that.
  void publish(Phase phase, std::uint32_t value);
  /// Until every other rank has come to `value`. Throws ERR_COMMUNICATION naming the one that did not, and
  /// why.
  void wait(Phase phase, std::uint32_t value);
  /// Throws when a rank ended the work.
  void check_aborted() const;
  /// All waits on all ranks end with this reason, unless one was given before. From any thread.
  void interrupt(const std::string& reason) noexcept;

  /// Writes down what this rank was asked to do, to be read by others once they saw a publish() after it.
  void post(std::uint64_t number, std::uint64_t kind, std::uint64_t count);
  const PostedCall& posted(int rank, std::uint64_t number) const;

 private:
  void wait_for(int other, Phase phase, std::uint32_t value);
  /// Whether spinning can help, because that rank runs elsewhere. Two that share a core are parted first.
  bool worth_spinning(int other);
  void tell_core();
  /// After a sleep that began at `asleep` and that another rank ended at `woken` (steady clock, ns): learns
  /// how long to spin.
  void woken_after(std::int64_t asleep, std::int64_t woken);

  SharedSegment segment_;
  const int rank_, ranks_;
  const std::chrono::microseconds timeout_;
  std::chrono::microseconds spin_;
  std::chrono::steady_clock::time_point parted_{};  // when this rank last left a core to another one
};

}  // namespace danceflux::cpu
