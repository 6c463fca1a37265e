#include "backend/cpu/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

// Older kernel headers than the oldest system that we run on lack these numbers.
#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#endif
#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

namespace danceflux::cpu {
namespace {

constexpr char kMagic[8] = {'d', 'f', 's', 'h', 'a', 'r', 'e', '\n'};
constexpr std::uint32_t kVersion = 3;
constexpr std::size_t kPage = 4096;
constexpr unsigned kMemfdCloexec = 1, kMemfdSealing = 2;
constexpr char kMemfdName[] = "danceflux", kMemfdLink[] = "/memfd:danceflux";
constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;

std::size_t slots_at(int ranks) {
  const std::size_t board = sizeof(SegmentHeader) + static_cast<std::size_t>(ranks) * sizeof(RankEntry);
  return (board + kPage - 1) / kPage * kPage;
}

std::string path_in(const SegmentPlan& plan) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string path = (plan.folder.empty() ? "/dev/shm" : plan.folder) + "/danceflux-";
  for (const unsigned char byte : plan.nonce) {
    path += kDigits[byte >> 4];
    path += kDigits[byte & 15];
  }
  return path;
}

[[noreturn]] void refuse(const std::string& what, int error) {
  throw Error("ERR_COMMUNICATION",
              "shared memory: " + what + (error ? std::string(": ") + strerror(error) : ""),
              "engine option folder names a folder in memory that all ranks see, such as /dev/shm");
}

flock lock_of(int rank) {
  flock lock{};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

}  // namespace

std::size_t SegmentPlan::bytes() const {
  return slots_at(ranks) + static_cast<std::size_t>(ranks) * kSlots * slot_bytes;
}

SharedSegment::SharedSegment(const SegmentPlan& plan, const SegmentPlace& place, int descriptor,
                             std::string path)
    : place_(place),
      path_(std::move(path)),
      descriptor_(descriptor),
      bytes_(plan.bytes()),
      slots_at_(slots_at(plan.ranks)),
      slot_bytes_(plan.slot_bytes) {}

SharedSegment::SharedSegment(SharedSegment&& other) noexcept
    : place_(other.place_),
      path_(std::exchange(other.path_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)),
      base_(std::exchange(other.base_, nullptr)),
      bytes_(other.bytes_),
      slots_at_(other.slots_at_),
      slot_bytes_(other.slot_bytes_) {}

SharedSegment::~SharedSegment() {
  unlink();
  if (base_) munmap(base_, bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

void SharedSegment::unlink() noexcept {
  if (!path_.empty()) ::unlink(path_.c_str());
  path_.clear();
}

void SharedSegment::map() {
  void* const base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0);
  if (base == MAP_FAILED) refuse("cannot map " + std::to_string(bytes_) + " bytes", errno);
  base_ = base;
}

SharedSegment SharedSegment::create(const SegmentPlan& plan) {
  SegmentPlace place;
  place.pid = static_cast<std::uint32_t>(getpid());
  std::string path;
  int descriptor = -1;
  if (plan.folder.empty())
    descriptor = static_cast<int>(syscall(SYS_memfd_create, kMemfdName, kMemfdCloexec | kMemfdSealing));
  const bool memfd = descriptor >= 0;
  if (!memfd) {
    path = path_in(plan);
    place.in_folder = true;
    descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (descriptor < 0) refuse("cannot make " + path, errno);
  }
  place.descriptor = static_cast<std::uint32_t>(descriptor);
  SharedSegment segment(plan, place, descriptor, path);
  // Taken now: a page that is missing later would end the process.
  const int error = posix_fallocate(descriptor, 0, static_cast<off_t>(segment.bytes_));
  if (error) refuse("cannot have " + std::to_string(segment.bytes_) + " bytes", error);
  if (memfd && fcntl(descriptor, F_ADD_SEALS, kSeals) != 0) refuse("cannot seal the segment", errno);
  segment.map();
  SegmentHeader& header = segment.header();
  header.version = kVersion;
  header.ranks = static_cast<std::uint32_t>(plan.ranks);
  header.slot_bytes = plan.slot_bytes;
  std::memcpy(header.nonce, plan.nonce, kNonceBytes);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  return segment;
}

SharedSegment SharedSegment::open(const SegmentPlan& plan, const SegmentPlace& place) {
  std::string path = path_in(plan);
  if (!place.in_folder) {
    path = "/proc/" + std::to_string(place.pid) + "/fd/" + std::to_string(place.descriptor);
    // Opening what lies behind a link of /proc can block or do harm, so its name is read first.
    char link[64] = {};
    if (readlink(path.c_str(), link, sizeof link - 1) < 0)
      refuse("cannot see the segment of rank 0 (process " + std::to_string(place.pid) + ")", errno);
    if (std::strncmp(link, kMemfdLink, sizeof kMemfdLink - 1) != 0)
      refuse("process " + std::to_string(place.pid) + " is not rank 0 (do all ranks see one process table?)",
             0);
  }
  const int flags = O_RDWR | O_CLOEXEC | O_NONBLOCK | (place.in_folder ? O_NOFOLLOW : 0);
  const int descriptor = ::open(path.c_str(), flags);
  if (descriptor < 0) refuse("cannot open the segment of rank 0", errno);
  SharedSegment segment(plan, place, descriptor, {});
  segment.check_file();
  segment.map();
  segment.check_header(plan);
  return segment;
}

void SharedSegment::check_file() const {
  struct stat status {};
  if (fstat(descriptor_, &status) != 0) refuse("cannot read the segment's state", errno);
  if (!S_ISREG(status.st_mode) || status.st_uid != geteuid())
    refuse("expected a segment of this user, got another's", 0);
  if (place_.in_folder && (status.st_mode & 077) != 0)
    refuse("expected a segment that nobody else may open, got a public one", 0);
  // A segment that can shrink could end this process while it reads.
  if (!place_.in_folder && (fcntl(descriptor_, F_GET_SEALS) & kSeals) != kSeals)
    refuse("expected a sealed segment", 0);
  if (status.st_size != static_cast<off_t>(bytes_))
    refuse(
        "expected a segment of " + std::to_string(bytes_) + " bytes, got " + std::to_string(status.st_size),
        0);
}

void SharedSegment::check_header(const SegmentPlan& plan) const {
  const SegmentHeader& found = header();
  if (std::memcmp(found.magic, kMagic, sizeof kMagic) != 0) refuse("expected a danceflux segment", 0);
  if (found.version != kVersion)
    refuse("expected a segment of version " + std::to_string(kVersion) + ", got " +
               std::to_string(found.version),
           0);
  if (std::memcmp(found.nonce, plan.nonce, kNonceBytes) != 0)
    refuse("expected the segment of this run, got another run's", 0);
  if (found.ranks != static_cast<std::uint32_t>(plan.ranks) || found.slot_bytes != plan.slot_bytes)
    refuse("expected a segment for " + std::to_string(plan.ranks) + " ranks with slots of " +
               std::to_string(plan.slot_bytes) + " bytes, got " + std::to_string(found.ranks) + " and " +
               std::to_string(found.slot_bytes),
           0);
}

RankEntry& SharedSegment::entry(int rank) const {
  return reinterpret_cast<RankEntry*>(static_cast<char*>(base_) + sizeof(SegmentHeader))[rank];
}

char* SharedSegment::slot(int rank, std::uint32_t step) const {
  const std::size_t index = static_cast<std::size_t>(rank) * kSlots + step % kSlots;
  return static_cast<char*>(base_) + slots_at_ + index * slot_bytes_;
}

bool SharedSegment::mark_alive(int rank) const {
  flock lock = lock_of(rank);
  return fcntl(descriptor_, F_OFD_SETLK, &lock) == 0;
}

bool SharedSegment::alive(int rank) const {
  flock lock = lock_of(rank);
  return fcntl(descriptor_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

}  // namespace danceflux::cpu
