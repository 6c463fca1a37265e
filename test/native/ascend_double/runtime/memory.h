// Device memory: addresses that no host code may touch, and the storage behind them.
//
// Every device has a range of addresses without access (a host load or store faults at once) and a range of
// the same size that holds the bytes; one is a constant distance from the other. Addresses are given out
// upward and reused only when the range has been used up, so that a stale pointer is seen as one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "ascend_double/runtime/live.h"

namespace ascend_double {

constexpr unsigned char kPoison = 0xFF;  // a NaN in every float type, -1 in every integer type
constexpr unsigned char kRedZone = 0xA5;
constexpr int kMostDevices = 16;

/// A stretch of device memory that a task touches.
struct Touch {
  const void* begin;
  std::size_t bytes;
  bool write;
};

class DeviceMemory final : public LiveCount {
 public:
  DeviceMemory();

  /// 64-byte aligned, and no better. The block takes ALIGN_UP(bytes, 32) + pad of the device's memory; the
  /// rest of that is a red zone. Refuses with 107000 for no bytes and with 207001 where the device is full.
  void* allocate(int device, std::size_t bytes, std::size_t pad);
  /// Checks the red zone, poisons the storage and gives it back.
  void free(void* address);

  /// Whether the address lies in any device's range, allocated or not.
  bool is_device(const void* address) const;
  /// The device whose range it lies in, or -1.
  int device_of(const void* address) const;
  /// Empty where [address, address + bytes) lies in one live block; otherwise why not.
  std::string why_not_inside(const void* address, std::size_t bytes);
  /// The bytes of the live block that starts here, or 1.
  std::size_t block_bytes(const void* address);
  /// The storage of [address, address + bytes). Refuses with 507015, as a kernel that faults, unless it lies
  /// in one live block.
  char* storage(const void* address, std::size_t bytes);
  /// Without any check: for peeking tests.
  char* raw_storage(const void* address) const;

  std::size_t total() const;
  std::size_t used(int device);
  std::size_t size() override;
  std::string example() override;

 private:
  struct Block {
    std::size_t bytes, span;
  };
  struct Range {
    char* addresses = nullptr;
    char* storage = nullptr;
    std::size_t next = 0;
    std::size_t used = 0;
    std::map<std::size_t, Block> blocks;  // by offset
  };
  Range& range(int device);
  std::size_t find_room(Range& range, std::size_t span) const;

  std::mutex mutex_;
  std::vector<Range> ranges_;
};

DeviceMemory& device_memory();

/// Pinned host memory.
class HostMemory final : public LiveCount {
 public:
  HostMemory() : LiveCount("host memory") {}
  void* allocate(std::size_t bytes);
  void free(void* address);
  bool pinned(const void* address, std::size_t bytes);
  std::size_t size() override;

 private:
  std::mutex mutex_;
  std::map<const char*, std::size_t> blocks_;
};

HostMemory& host_memory();

}  // namespace ascend_double
