#include "ascend_double/runtime/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace ascend_double {
namespace {

constexpr std::size_t kRangeBytes = std::size_t{32} << 30;
constexpr std::size_t kPage = 4096;
// The start of a block within its page: a multiple of 64 and of nothing more.
constexpr std::size_t kStart = 64;

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

char* reserve(int protection) {
  void* range = mmap(nullptr, kRangeBytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host has no address space left");
  return static_cast<char*>(range);
}

}  // namespace

DeviceMemory::DeviceMemory() : LiveCount("device memory"), ranges_(kMostDevices) {}

DeviceMemory::Range& DeviceMemory::range(int device) {
  Range& range = ranges_[static_cast<std::size_t>(device)];
  if (!range.addresses) {
    range.storage = reserve(PROT_READ | PROT_WRITE);
    range.addresses = reserve(PROT_NONE);
  }
  return range;
}

std::size_t DeviceMemory::total() const {
  return static_cast<std::size_t>(setting("MEMORY_MIB", std::int64_t{4096})) << 20;
}

// Behind the last block; once the range is used up, the first gap that is wide enough.
std::size_t DeviceMemory::find_room(Range& range, std::size_t span) const {
  const std::size_t wanted = round_up(span, kPage) + 2 * kPage;
  if (range.next + wanted <= kRangeBytes) {
    const std::size_t start = range.next + kStart;
    range.next += wanted;
    return start;
  }
  std::size_t free_from = 0;
  for (const auto& [offset, block] : range.blocks) {
    if (offset / kPage * kPage >= free_from + wanted) break;
    free_from = round_up(offset + block.span, kPage) + kPage;
  }
  if (free_from + wanted > kRangeBytes)
    refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, "no address range of %zu bytes is left", span);
  return free_from + kStart;
}

void* DeviceMemory::allocate(int device, std::size_t bytes, std::size_t pad) {
  if (bytes == 0) refuse(ACL_ERROR_RT_PARAM_INVALID, "expected a size above 0");
  const std::size_t span = round_up(bytes, 32) + pad;
  const std::scoped_lock lock(mutex_);
  Range& range = this->range(device);
  if (bytes > total() || range.used + span > total())
    refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, "device %d is out of memory: asked %zu bytes, %zu of %zu used",
           device, bytes, range.used, total());
  const std::size_t start = find_room(range, span);
  range.blocks[start] = {bytes, span};
  range.used += span;
  std::memset(range.storage + start, kPoison, bytes);
  std::memset(range.storage + start + bytes, kRedZone, span - bytes);
  return range.addresses + start;
}

void DeviceMemory::free(void* address) {
  const int device = device_of(address);
  if (device < 0) refuse(ACL_ERROR_RT_PARAM_INVALID, "%p is no device memory", address);
  const std::scoped_lock lock(mutex_);
  Range& range = ranges_[static_cast<std::size_t>(device)];
  const std::size_t start = static_cast<std::size_t>(static_cast<char*>(address) - range.addresses);
  const auto found = range.blocks.find(start);
  if (found == range.blocks.end()) {
    violation("device memory was freed twice, or at an address inside a block");
    refuse(ACL_ERROR_RT_PARAM_INVALID, "%p is not the start of a live block", address);
  }
  const Block block = found->second;
  for (std::size_t i = block.bytes; i < block.span; ++i)
    if (static_cast<unsigned char>(range.storage[start + i]) != kRedZone) {
      violation("the red zone behind a block of %zu bytes was written at byte %zu", block.bytes, i);
      break;
    }
  range.used -= block.span;
  range.blocks.erase(found);
  std::memset(range.storage + start, kPoison, block.span < kPage ? block.span : kPage);
  if (const std::size_t pages = block.span / kPage; pages > 1)
    madvise(range.storage + start - kStart + kPage, (pages - 1) * kPage, MADV_DONTNEED);
}

int DeviceMemory::device_of(const void* address) const {
  for (std::size_t device = 0; device < ranges_.size(); ++device) {
    const char* begin = ranges_[device].addresses;
    if (begin && address >= begin && address < begin + kRangeBytes) return static_cast<int>(device);
  }
  return -1;
}

bool DeviceMemory::is_device(const void* address) const { return device_of(address) >= 0; }

std::string DeviceMemory::why_not_inside(const void* address, std::size_t bytes) {
  const int device = device_of(address);
  if (device < 0) return text_of("%p is no device memory", address);
  const std::scoped_lock lock(mutex_);
  Range& range = ranges_[static_cast<std::size_t>(device)];
  const std::size_t start = static_cast<std::size_t>(static_cast<const char*>(address) - range.addresses);
  auto after = range.blocks.upper_bound(start);
  if (after == range.blocks.begin()) return "the memory was freed or never allocated";
  --after;
  const auto& [offset, block] = *after;
  if (start >= offset + block.span) return "the memory was freed or never allocated";
  if (start + bytes > offset + block.bytes)
    return text_of("%zu bytes at byte %zu reach beyond their block of %zu bytes", bytes, start - offset,
                   block.bytes);
  return {};
}

std::size_t DeviceMemory::block_bytes(const void* address) {
  const int device = device_of(address);
  if (device < 0) return 1;
  const std::scoped_lock lock(mutex_);
  Range& range = ranges_[static_cast<std::size_t>(device)];
  const auto found =
      range.blocks.find(static_cast<std::size_t>(static_cast<const char*>(address) - range.addresses));
  return found == range.blocks.end() ? 1 : found->second.bytes;
}

char* DeviceMemory::storage(const void* address, std::size_t bytes) {
  const std::string reason = why_not_inside(address, bytes);
  if (!reason.empty()) {
    violation("queued work touched memory that it may not: %s", reason.c_str());
    refuse(ACL_ERROR_RT_AICORE_EXCEPTION, "%s", reason.c_str());
  }
  return raw_storage(address);
}

char* DeviceMemory::raw_storage(const void* address) const {
  const int device = device_of(address);
  if (device < 0) return nullptr;
  const Range& range = ranges_[static_cast<std::size_t>(device)];
  return range.storage + (static_cast<const char*>(address) - range.addresses);
}

std::size_t DeviceMemory::used(int device) {
  const std::scoped_lock lock(mutex_);
  return ranges_[static_cast<std::size_t>(device)].used;
}

std::size_t DeviceMemory::size() {
  const std::scoped_lock lock(mutex_);
  std::size_t blocks = 0;
  for (const Range& range : ranges_) blocks += range.blocks.size();
  return blocks;
}

std::string DeviceMemory::example() {
  const std::scoped_lock lock(mutex_);
  for (const Range& range : ranges_)
    if (!range.blocks.empty()) return text_of(", one of %zu bytes", range.blocks.begin()->second.bytes);
  return {};
}

DeviceMemory& device_memory() {
  static DeviceMemory& only = *new DeviceMemory;
  return only;
}

void* HostMemory::allocate(std::size_t bytes) {
  if (bytes == 0) refuse(ACL_ERROR_RT_PARAM_INVALID, "expected a size above 0");
  void* address = std::aligned_alloc(64, round_up(bytes, 64));
  if (!address) refuse(ACL_ERROR_RT_MEMORY_ALLOCATION, "the host is out of memory");
  std::memset(address, kPoison, bytes);
  const std::scoped_lock lock(mutex_);
  blocks_[static_cast<char*>(address)] = bytes;
  return address;
}

void HostMemory::free(void* address) {
  {
    const std::scoped_lock lock(mutex_);
    if (!blocks_.erase(static_cast<char*>(address)))
      refuse(ACL_ERROR_RT_PARAM_INVALID, "%p was not given out by aclrtMallocHost", address);
  }
  std::free(address);
}

bool HostMemory::pinned(const void* address, std::size_t bytes) {
  const std::scoped_lock lock(mutex_);
  auto after = blocks_.upper_bound(static_cast<const char*>(address));
  if (after == blocks_.begin()) return false;
  --after;
  return static_cast<const char*>(address) + bytes <= after->first + after->second;
}

std::size_t HostMemory::size() {
  const std::scoped_lock lock(mutex_);
  return blocks_.size();
}

HostMemory& host_memory() {
  static HostMemory& only = *new HostMemory;
  return only;
}

}  // namespace ascend_double

extern "C" {
/// The host address of the bytes behind a device address, for tests that look without synchronising.
__attribute__((visibility("default"))) void* ascend_double_storage(const void* device) {
  return ascend_double::device_memory().raw_storage(device);
}
}
