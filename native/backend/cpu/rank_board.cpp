#include "backend/cpu/rank_board.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "backend/host_communicator.h"
#include "backend/waiting.h"
#include "core/cancel.h"
#include "core/error.h"

namespace danceflux::cpu {
namespace {

// Where every rank has a core of its own, the next piece is there within this time; otherwise the core is
// better given away. Where waking a rank takes its time, that is added: see woken_after().
constexpr std::chrono::microseconds kSpin{40}, kLongestWake{300};
// How soon a death or a stopped job is noticed.
constexpr std::chrono::milliseconds kSlice{20};
// How often a rank moves to another core at most: a move costs tens of microseconds.
constexpr std::chrono::milliseconds kPartAgain{2};
constexpr double kLongest = 30.0 * 24 * 3600;

bool reached(std::uint32_t at, std::uint32_t value) { return static_cast<std::int32_t>(at - value) >= 0; }

std::string name_of(int rank) { return "rank " + std::to_string(rank); }

std::uint32_t this_core() { return static_cast<std::uint32_t>(sched_getcpu()) + 1; }

// Moves this thread off `core` (as this_core() tells it), if it may run elsewhere; where it may run stays
// what it was.
void leave_core(std::uint32_t core) noexcept {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;  // more cores than the set has room for
  cpu_set_t others = allowed;
  CPU_CLR(core - 1, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
}

std::chrono::microseconds micros(double seconds) {
  return std::chrono::microseconds(std::llround(std::clamp(seconds, 0.0, kLongest) * 1e6));
}

std::int64_t nanoseconds_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string seconds_of(std::chrono::microseconds time) {
  std::ostringstream text;
  text << std::chrono::duration<double>(time).count() << " s";
  return text.str();
}

}  // namespace

RankBoard::RankBoard(SharedSegment segment, int rank, int ranks, double timeout_seconds)
    : segment_(std::move(segment)),
      rank_(rank),
      ranks_(ranks),
      timeout_(micros(timeout_seconds)),
      spin_(ranks <= sysconf(_SC_NPROCESSORS_ONLN) ? kSpin : std::chrono::microseconds(0)) {}

RankBoard::~RankBoard() {
  RankEntry& own = segment_.entry(rank_);
  own.left.store(1);
  for (const auto& word : own.phase) wake_all(word);
}

void RankBoard::attach() {
  RankEntry& own = segment_.entry(rank_);
  std::uint32_t nobody = 0;
  if (!own.pid.compare_exchange_strong(nobody, static_cast<std::uint32_t>(getpid())))
    fail_communication("expected one rank " + std::to_string(rank_) + ", got another in process " +
                       std::to_string(nobody));
  own.marked.store(segment_.mark_alive(rank_) ? 1 : 0);
  publish(kAttached, 1);
  try {
    wait(kAttached, 1);
  } catch (const Error& error) {
    interrupt(error.what());
    throw;
  }
  segment_.unlink();
}

void RankBoard::publish(Phase phase, std::uint32_t value) {
  RankEntry& own = segment_.entry(rank_);
  tell_core();
  // The value before the question who sleeps, as a sleeper asks in the other order: no wake-up is lost.
  own.phase[phase].store(value, std::memory_order_seq_cst);
  if (own.sleepers.load(std::memory_order_seq_cst) == 0) return;
  own.woke_at.store(nanoseconds_now(), std::memory_order_release);
  wake_all(own.phase[phase]);
}

void RankBoard::wait(Phase phase, std::uint32_t value) {
  for (int distance = 1; distance < ranks_; ++distance) wait_for((rank_ + distance) % ranks_, phase, value);
}

// The kernel likes to wake a thread where its waker runs, and then leaves both there: each would spin away
// the time in which the other could work. Whoever waits moves: the other one has work to do there, and may
// never come to wait.
bool RankBoard::worth_spinning(int other) {
  if (spin_.count() == 0) return false;
  tell_core();
  const std::uint32_t core = segment_.entry(other).core.load(std::memory_order_relaxed);
  if (core != this_core()) return true;
  const auto now = std::chrono::steady_clock::now();
  if (now - parted_ < kPartAgain) return false;
  parted_ = now;
  leave_core(core);
  tell_core();
  return this_core() != core;
}

void RankBoard::tell_core() {
  std::atomic<std::uint32_t>& told = segment_.entry(rank_).core;
  const std::uint32_t core = this_core();
  if (told.load(std::memory_order_relaxed) != core) told.store(core, std::memory_order_relaxed);
}

// A rank that slept comes late by as long as its waking takes, and one that spins for less than that sleeps
// in its turn: so both would go on, a piece for every two wake-ups. A core that has halted takes 60 to 100 us
// to wake on some virtual machines.
void RankBoard::woken_after(std::int64_t asleep, std::int64_t woken) {
  const std::int64_t now = nanoseconds_now();
  if (spin_.count() == 0 || woken < asleep || woken > now) return;  // nobody woke it
  const std::chrono::nanoseconds took(now - woken);
  // Where waking takes longer still, somebody else had the core: no spinning helps.
  spin_ = took > kLongestWake ? kSpin : kSpin + std::chrono::duration_cast<std::chrono::microseconds>(took);
}

void RankBoard::wait_for(int other, Phase phase, std::uint32_t value) {
  RankEntry& theirs = segment_.entry(other);
  const auto& word = theirs.phase[phase];
  const auto here = [&] { return reached(word.load(std::memory_order_acquire), value); };
  if (here() || (worth_spinning(other) && spin_until(spin_, here))) return;
  const auto deadline = std::chrono::steady_clock::now() + timeout_;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::microseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      static constexpr const char* kMissed[] = {"did not connect", "did not arrive", "did not do its part",
                                                "did not take its part"};
      fail_communication(name_of(other) + " " + kMissed[phase] + " within " + seconds_of(timeout_));
    }
    theirs.sleepers.fetch_add(1, std::memory_order_seq_cst);
    const std::uint32_t seen = word.load(std::memory_order_seq_cst);
    if (!reached(seen, value) && segment_.header().abort_state.load() != 2) {
      const std::int64_t asleep = nanoseconds_now();
      sleep_while(word, seen, std::min<std::chrono::microseconds>(left, kSlice));
      woken_after(asleep, theirs.woke_at.load(std::memory_order_acquire));
    }
    theirs.sleepers.fetch_sub(1, std::memory_order_seq_cst);
    tell_core();
    if (here()) return;
    const bool gone = theirs.marked.load() != 0 && !segment_.alive(other);
    if (here()) return;  // it came, and then it went
    check_aborted();
    if (theirs.left.load() != 0) fail_communication(name_of(other) + " has left");
    if (gone)
      fail_communication(name_of(other) + " is gone: process " + std::to_string(theirs.pid.load()) +
                         " ended");
    throw_if_cancelled();
  }
}

void RankBoard::check_aborted() const {
  const SegmentHeader& header = segment_.header();
  if (header.abort_state.load(std::memory_order_acquire) == 2) {
    const auto by = static_cast<int>(header.abort_rank.load());
    std::string reason(header.abort_text, strnlen(header.abort_text, kAbortText));
    std::replace_if(
        reason.begin(), reason.end(), [](unsigned char c) { return c < 32 || c == 127; }, ' ');
    fail_communication(by == rank_ ? "aborted: " + reason
                                   : "rank " + std::to_string(by) + " aborted: " + reason);
  }
}

void RankBoard::interrupt(const std::string& reason) noexcept {
  SegmentHeader& header = segment_.header();
  std::uint32_t none = 0;
  if (header.abort_state.compare_exchange_strong(none, 1)) {
    const std::size_t length = std::min(reason.size(), kAbortText - 1);
    reason.copy(header.abort_text, length);
    header.abort_text[length] = '\0';
    header.abort_rank.store(static_cast<std::uint32_t>(rank_));
    header.abort_state.store(2, std::memory_order_seq_cst);
  }
  for (int rank = 0; rank < ranks_; ++rank) {
    for (const auto& word : segment_.entry(rank).phase) wake_all(word);
  }
}

void RankBoard::post(std::uint64_t number, std::uint64_t kind, std::uint64_t count) {
  PostedCall& call = segment_.entry(rank_).calls[number % 2];
  call.number.store(number, std::memory_order_relaxed);
  call.kind.store(kind, std::memory_order_relaxed);
  call.count.store(count, std::memory_order_relaxed);
}

const PostedCall& RankBoard::posted(int rank, std::uint64_t number) const {
  return segment_.entry(rank).calls[number % 2];
}

}  // namespace danceflux::cpu
