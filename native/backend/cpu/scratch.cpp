#include "backend/cpu/scratch.h"

#include <cstdlib>
#include <utility>

#include "core/error.h"

namespace danceflux::cpu {
namespace {
constexpr std::size_t kPage = 4096;
}

Buffer::~Buffer() { std::free(address_); }

Buffer::Buffer(Buffer&& other) noexcept
    : address_(std::exchange(other.address_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

void* Buffer::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return address_;
  const std::size_t rounded = (bytes + kPage - 1) / kPage * kPage;
  std::free(std::exchange(address_, nullptr));
  bytes_ = 0;
  address_ = std::aligned_alloc(kPage, rounded);
  require(address_ != nullptr, "ERR_MEMORY", "cpu: expected ", rounded, " bytes of scratch memory, got none");
  bytes_ = rounded;
  return address_;
}

void Workspace::reserve_workers(std::size_t bytes) {
  for (Buffer& buffer : workers) buffer.reserve(bytes);
}

}  // namespace danceflux::cpu
