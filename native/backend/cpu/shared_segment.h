// The memory that ranks of one host share: a header, a board of one entry per rank, and slots that data
// passes through. It is small; tensors go through it in pieces.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace danceflux::cpu {

/// Pieces under way per rank.
constexpr std::uint32_t kSlots = 4;

/// How far a rank has come; counters that only grow and wrap around.
enum Phase { kAttached, kStaged, kReduced, kCollected, kPhases };

/// What a rank was asked to do. Only compared and told, never obeyed.
struct PostedCall {
  std::atomic<std::uint64_t> number, kind, count;
};

struct alignas(64) RankEntry {
  std::atomic<std::uint32_t> pid;
  std::atomic<std::uint32_t> marked;  // 1: its mark_alive() holds
  std::atomic<std::uint32_t> left;    // 1: it ended in peace
  PostedCall calls[2];                // by the call's number, modulo 2
  alignas(64) std::atomic<std::uint32_t> phase[kPhases];
  std::atomic<std::uint32_t> sleepers;  // ranks that sleep on one of the four
  std::atomic<std::uint32_t> core;      // it last published from, plus one; a hint
  std::atomic<std::int64_t> woke_at;    // when it last woke others, ns of the steady clock; a hint
};

constexpr std::size_t kNonceBytes = 16, kAbortText = 400;

struct alignas(64) SegmentHeader {
  char magic[8];
  std::uint32_t version, ranks;
  std::uint64_t slot_bytes;
  unsigned char nonce[kNonceBytes];
  std::atomic<std::uint32_t> abort_state;  // 0 no, 1 somebody writes the reason, 2 yes
  std::atomic<std::uint32_t> abort_rank;
  char abort_text[kAbortText];
};

/// What a segment is for; ranks must agree.
struct SegmentPlan {
  int ranks = 1;
  std::uint64_t slot_bytes = 0;
  /// Where the file of the segment is made; empty: a memfd, which needs no folder and leaves nothing behind,
  /// or where there is none /dev/shm.
  std::string folder;
  unsigned char nonce[kNonceBytes] = {};  // unguessable; a segment with another one is not ours

  std::size_t bytes() const;
};

/// Where a segment is found.
struct SegmentPlace {
  std::uint32_t pid = 0, descriptor = 0;
  bool in_folder = false;
};

class SharedSegment {
 public:
  /// Throws ERR_COMMUNICATION with the system's words.
  static SharedSegment create(const SegmentPlan& plan);
  /// Trusts nothing: the file must be what create() makes, belong to this user, and its header must hold what
  /// the plan says.
  static SharedSegment open(const SegmentPlan& plan, const SegmentPlace& place);

  SharedSegment(SharedSegment&& other) noexcept;
  SharedSegment& operator=(SharedSegment&&) = delete;
  /// The file goes, if nobody took it away before.
  ~SharedSegment();

  const SegmentPlace& place() const { return place_; }
  /// Takes the file's name away; those who have it open keep it.
  void unlink() noexcept;

  SegmentHeader& header() const { return *static_cast<SegmentHeader*>(base_); }
  RankEntry& entry(int rank) const;
  char* slot(int rank, std::uint32_t step) const;

  /// Marks this rank as alive until the process ends or the segment is closed, whatever the end. False where
  /// the kernel has no such locks.
  bool mark_alive(int rank) const;
  /// Whether somebody holds that mark. True where the kernel cannot tell.
  bool alive(int rank) const;

 private:
  SharedSegment(const SegmentPlan& plan, const SegmentPlace& place, int descriptor, std::string path);
  void map();
  void check_file() const;
  void check_header(const SegmentPlan& plan) const;

  SegmentPlace place_;
  std::string path_;  // to be unlinked
  int descriptor_ = -1;
  void* base_ = nullptr;
  std::size_t bytes_ = 0, slots_at_ = 0;
  std::uint64_t slot_bytes_ = 0;
};

}  // namespace danceflux::cpu
