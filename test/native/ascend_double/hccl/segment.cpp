#include "ascend_double/hccl/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "ascend_double/runtime/core.h"

namespace ascend_double {

// A new file is all zeros, and zeros are a good start for every field.
struct Segment::Head {
  std::atomic<std::uint32_t> ranks;
  std::atomic<std::uint32_t> joined[kMostRanks];
  std::atomic<std::uint64_t> arrived[kMostRanks];
  CallDescription descriptions[kMostRanks];
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

constexpr std::size_t kHeadBytes = 64 << 10;

void pause_briefly(int round) {
  if (round < 200)
    std::this_thread::yield();
  else
    std::this_thread::sleep_for(std::chrono::microseconds(round < 2000 ? 50 : 500));
}

Segment::Segment(const std::string& name, std::uint32_t rank_count, std::uint32_t own)
    : ranks(rank_count), rank(own), path_(setting("HCCL_DIR", "/dev/shm") + "/" + name) {
  static_assert(sizeof(Head) <= kHeadBytes);
  bytes_ = kHeadBytes + ranks * kChunk + std::size_t{ranks} * ranks * sizeof(Mailbox);
  const int file = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) refuse(HCCL_E_OPEN_FILE_FAILURE, "%s: %s", path_.c_str(), std::strerror(errno));
  struct stat info {};
  // Only ever grown: ranks that disagree on their number must not cut each other's maps short.
  if (fstat(file, &info) != 0 ||
      (static_cast<std::size_t>(info.st_size) < bytes_ && ftruncate(file, static_cast<off_t>(bytes_)) != 0)) {
    close(file);
    refuse(HCCL_E_SYSCALL, "%s: %s", path_.c_str(), std::strerror(errno));
  }
  void* map = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (map == MAP_FAILED) refuse(HCCL_E_MEMORY, "%s: %s", path_.c_str(), std::strerror(errno));
  base_ = static_cast<char*>(map);
}

Segment::~Segment() { munmap(base_, bytes_); }

bool Segment::join(Deadline deadline) {
  Head& head = *reinterpret_cast<Head*>(base_);
  std::uint32_t none = 0;
  if (!head.ranks.compare_exchange_strong(none, ranks) && none != ranks)
    refuse(HCCL_E_PARA, "EI0003: %u ranks here, %u elsewhere", ranks, none);
  if (head.joined[rank].exchange(1) != 0) refuse(HCCL_E_PARA, "EI0003: rank %u is there twice", rank);
  const bool all = wait(deadline, [&] {
    for (std::uint32_t other = 0; other < ranks; ++other)
      if (!head.joined[other]) return false;
    return true;
  });
  // Once everybody has it open, nobody needs its name; and after a failure nobody must find it.
  if (all ? barrier(deadline) && rank == 0 : true) unlink(path_.c_str());
  return all;
}

bool Segment::barrier(Deadline deadline) {
  Head& head = *reinterpret_cast<Head*>(base_);
  const std::uint64_t turn = ++head.arrived[rank];
  return wait(deadline, [&] {
    for (std::uint32_t other = 0; other < ranks; ++other)
      if (head.arrived[other] < turn) return false;
    return true;
  });
}

CallDescription& Segment::description(std::uint32_t of) {
  return reinterpret_cast<Head*>(base_)->descriptions[of];
}
char* Segment::chunk(std::uint32_t of) { return base_ + kHeadBytes + of * kChunk; }
Segment::Mailbox& Segment::mailbox(std::uint32_t from, std::uint32_t to) {
  return reinterpret_cast<Mailbox*>(base_ + kHeadBytes + ranks * kChunk)[from * ranks + to];
}

}  // namespace ascend_double
