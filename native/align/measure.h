// What is told of a tensor, and of two that should be alike: numbers that can be gathered piece by piece, in
// one fixed order, on the host.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/dtype.h"

namespace danceflux::align {

/// CRC-32 (the one of zip and PNG) of more bytes after those that gave `crc`; begins with 0.
std::uint32_t crc32(std::uint32_t crc, const void* bytes, std::size_t count);

/// Random projections kept per tensor: what tells how far apart two tensors are when only these numbers of
/// each are known. For weights w of mean 0 and variance 1, (w . a - w . b)^2 is |a - b|^2 on average. They
/// are no mere signs: where a few elements differ by the same step, those would often cancel in all
/// projections.
inline constexpr std::size_t kSketches = 8;

/// Of one tensor, over its finite elements.
struct Measure {
  std::uint64_t count = 0, nan = 0, inf = 0;
  double min = std::numeric_limits<double>::infinity(), max = -std::numeric_limits<double>::infinity();
  double sum = 0, squares = 0;
  std::array<double, kSketches> sketch{};
  std::uint32_t crc = 0;

  /// The next `elements` elements in row-major order. `numbers` false: the checksum alone. Integers are
  /// measured as numbers.
  void add(const void* data, DType dtype, std::size_t elements, bool numbers = true);
};

/// Buckets of the histogram of distances in units in the last place: 0, 1, 2, 3-4, 5-8, ..., more than 2^22,
/// and pairs that have none (a NaN or an infinity on one side only).
inline constexpr std::size_t kUlpBuckets = 26;

/// Of two tensors a and b; b is what counts as right.
struct PairMeasure {
  std::uint64_t count = 0, finite = 0, equal = 0;  // equal: the same bits, or both NaN
  std::uint64_t odd = 0;  // a NaN or an infinity on one side only, or two different ones
  std::uint64_t within_one = 0, within_five = 0;  // relative error below a thousandth, below five
  double dot = 0, squares_a = 0, squares_b = 0, squared_distance = 0;
  double max_absolute = 0, max_relative = 0;
  std::uint64_t worst = 0;  // where the largest absolute error is
  std::array<std::uint64_t, kUlpBuckets> ulps{};

  /// The next elements of both. The histogram is kept for equal dtypes among f32, bf16, f16.
  void add(const void* a, DType a_dtype, const void* b, DType b_dtype, std::size_t elements);
  /// The measure of the elements that come next.
  void add(const PairMeasure& next);
};

}  // namespace danceflux::align
