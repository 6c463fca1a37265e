// What the ranks of a communicator share: a file in /dev/shm (ASCEND_DOUBLE_HCCL_DIR), mapped by each of
// them.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ascend_double {

constexpr std::uint32_t kMostRanks = 64;
constexpr std::size_t kChunk = 1 << 20;       // bytes of a collective that go at a time
constexpr std::size_t kMailChunk = 64 << 10;  // and of a send

/// What a rank says it is about to do.
struct CallDescription {
  std::uint32_t kind;
  std::int32_t dtype, op;
  std::uint32_t root;
  std::uint64_t count;
  bool operator==(const CallDescription&) const = default;
};

using Deadline = std::chrono::steady_clock::time_point;

class Segment {
 public:
  /// Opens the segment `name`, making it where it is not there yet.
  Segment(const std::string& name, std::uint32_t ranks, std::uint32_t rank);
  ~Segment();
  Segment(const Segment&) = delete;

  /// Waits for all ranks to be there; false at the deadline. Refuses with HCCL_E_PARA where they disagree on
  /// their number.
  bool join(Deadline deadline);
  /// Waits for all ranks to have called barrier as often; false at the deadline.
  bool barrier(Deadline deadline);

  CallDescription& description(std::uint32_t rank);
  char* chunk(std::uint32_t rank);

  struct Mailbox {
    std::atomic<std::uint64_t> written, read;  // chunks
    CallDescription description;
    char bytes[kMailChunk];
  };
  Mailbox& mailbox(std::uint32_t from, std::uint32_t to);
  /// Waits until `holds`; false at the deadline.
  template <class Condition>
  static bool wait(Deadline deadline, Condition&& holds);

  const std::uint32_t ranks, rank;

 private:
  struct Head;
  std::string path_;
  char* base_ = nullptr;
  std::size_t bytes_ = 0;
};

void pause_briefly(int round);

template <class Condition>
bool Segment::wait(Deadline deadline, Condition&& holds) {
  for (int round = 0; !holds(); ++round) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    pause_briefly(round);
  }
  return true;
}

}  // namespace ascend_double
