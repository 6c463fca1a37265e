// CRC-32 as in zlib, for freezing long results in one number.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace danceflux::test {

inline std::uint32_t crc32(const void* data, std::size_t bytes) {
  std::uint32_t rest = 0xffffffffu;
  for (std::size_t i = 0; i < bytes; ++i) {
    rest ^= static_cast<const unsigned char*>(data)[i];
    for (int bit = 0; bit < 8; ++bit) rest = (rest >> 1) ^ (rest & 1u ? 0xedb88320u : 0u);
  }
  return ~rest;
}

/// Of the bytes in memory, which are little-endian on every machine that the project runs on.
template <class T>
std::uint32_t crc32(std::span<const T> values) {
  return crc32(values.data(), values.size_bytes());
}

}  // namespace danceflux::test
