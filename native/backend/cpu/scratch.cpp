#include "backend/cpu/scratch.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "core/error.h"

namespace danceflux::cpu {
namespace {
constexpr std::size_t kPage = 4096, kHugePage = std::size_t{2} << 20;

// Large pages where the system has them: a packed block spans hundreds of small ones.
void* take_pages(std::size_t bytes) {
  if (bytes < kHugePage / 4) return std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  const std::size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* address = std::aligned_alloc(kHugePage, rounded);
  if (address) madvise(address, rounded, MADV_HUGEPAGE);
  return address;
}

}  // namespace

Buffer::~Buffer() { std::free(address_); }

Buffer::Buffer(Buffer&& other) noexcept
    : address_(std::exchange(other.address_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

void* Buffer::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return address_;
  std::free(std::exchange(address_, nullptr));
  bytes_ = 0;
  address_ = take_pages(bytes);
  require(address_ != nullptr, "ERR_MEMORY", "cpu: expected ", bytes, " bytes of scratch memory, got none");
  bytes_ = bytes;
  return address_;
}

Workspace::Workspace(const IsaKernels& isa, int threads)
    : kernels(isa), workers(static_cast<std::size_t>(threads)) {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) second_cache = std::max<std::int64_t>(found, std::int64_t{1} << 18);
#endif
}

void Workspace::reserve_workers(std::size_t bytes) {
  for (Buffer& buffer : workers) buffer.reserve(bytes);
}

}  // namespace danceflux::cpu
