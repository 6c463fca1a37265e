// A piece of a matrix as it lies in memory, in any layout and storage type.
#pragma once
#include <cstdint>

namespace danceflux::cpu {

enum class Store : std::uint8_t { f32, bf16, f16 };

/// Element (line, k) is at data + line * line_stride + k * depth_stride. A line is a row of A or a column of
/// B; k runs along the sum.
struct Panel {
  const void* data;
  Store store;
  std::int64_t line_stride, depth_stride;  // in elements
};

}  // namespace danceflux::cpu
