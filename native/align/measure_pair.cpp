// Distances of two tensors, several elements at a time: what takes the time when gigabytes are compared.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "align/measure.h"
#include "align/numbers.h"

namespace danceflux::align {
namespace {

constexpr std::size_t kBlock = 1024, kLanes = 8;

/// A few elements' sums side by side; the order in which they come together is fixed.
struct Sums {
  double dot[kLanes] = {}, left[kLanes] = {}, right[kLanes] = {}, apart[kLanes] = {};
  float most[kLanes] = {}, relative[kLanes] = {};
  std::uint32_t one[kLanes] = {}, five[kLanes] = {};
};

double total(const double* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

/// `count` is a multiple of kLanes.
DANCEFLUX_WIDER void gather(const float* __restrict x, const float* __restrict y, std::size_t count,
                            Sums& __restrict sums) {
  for (std::size_t i = 0; i < count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double a = x[i + lane], b = y[i + lane];
      sums.dot[lane] += a * b;
      sums.left[lane] += a * a;
      sums.right[lane] += b * b;
      sums.apart[lane] += (a - b) * (a - b);
    }
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const float size = std::fabs(x[i + lane] - y[i + lane]), scale = std::fabs(y[i + lane]);
      // An error beside an exact zero is measured by the smallest step of a double at 1, as the usual tools
      // do.
      const float share = size / (scale > 0 ? scale : 2.220446e-16f);
      sums.most[lane] = size > sums.most[lane] ? size : sums.most[lane];
      sums.relative[lane] = share > sums.relative[lane] ? share : sums.relative[lane];
      sums.one[lane] += size <= 0.001f * scale;
      sums.five[lane] += size <= 0.005f * scale;
    }
  }
}

/// The histogram's bucket of each pair: the exponent of the distance in the last place.
DANCEFLUX_WIDER void buckets(const std::uint32_t* __restrict a, const std::uint32_t* __restrict b,
                             std::size_t count, std::uint32_t sign, std::uint8_t* __restrict out) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto size_a = static_cast<std::int32_t>(a[i] & (sign - 1)),
               size_b = static_cast<std::int32_t>(b[i] & (sign - 1));
    const std::int32_t left = a[i] & sign ? -size_a : size_a, right = b[i] & sign ? -size_b : size_b;
    // Unsigned: numbers of two signs may be almost 2^32 apart.
    const std::uint32_t distance = left > right
                                       ? static_cast<std::uint32_t>(left) - static_cast<std::uint32_t>(right)
                                       : static_cast<std::uint32_t>(right) - static_cast<std::uint32_t>(left);
    // 3..4 -> 2, 5..8 -> 3, ...: the exponent of distance - 1, which is exact below 2^24 and saturated above.
    const std::uint32_t below = distance > 1 ? std::min(distance - 1, 1u << 23) : 1;
    const std::uint32_t exponent =
        (std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(below))) >> 23) - 127;
    const std::uint32_t bucket = distance <= 2 ? distance : 2 + exponent;
    out[i] = static_cast<std::uint8_t>(bucket < kUlpBuckets - 2 ? bucket : kUlpBuckets - 2);
  }
}

void add_ulps(const std::byte* a, const std::byte* b, DType dtype, std::size_t count, const float* x,
              const float* y, bool finite, PairMeasure& pair) {
  std::array<std::uint32_t, kBlock> left, right;
  std::array<std::uint8_t, kBlock> bucket;
  const bool wide = dtype == DType::f32;
  if (wide) {
    std::memcpy(left.data(), a, count * 4);
    std::memcpy(right.data(), b, count * 4);
  } else {
    for (std::size_t i = 0; i < count; ++i) {
      std::uint16_t narrow = 0;
      std::memcpy(&narrow, a + 2 * i, 2);
      left[i] = narrow;
      std::memcpy(&narrow, b + 2 * i, 2);
      right[i] = narrow;
    }
  }
  buckets(left.data(), right.data(), count, wide ? 0x80000000u : 0x8000u, bucket.data());
  // Neighbours often share a bucket: four histograms keep them from waiting for each other.
  std::uint32_t four[4][kUlpBuckets] = {};
  for (std::size_t i = 0; i < count; ++i) {
    std::size_t at = bucket[i];
    if (!finite && !(std::isfinite(x[i]) && std::isfinite(y[i]))) {
      const bool same = left[i] == right[i] || (std::isnan(x[i]) && std::isnan(y[i]));
      at = same ? 0 : kUlpBuckets - 1;
    }
    ++four[i & 3][at];
  }
  for (std::size_t k = 0; k < kUlpBuckets; ++k)
    pair.ulps[k] += four[0][k] + four[1][k] + four[2][k] + four[3][k];
}

DANCEFLUX_WIDER std::uint32_t count_equal(const float* x, const float* y, std::size_t count) {
  std::uint32_t same = 0;
  for (std::size_t i = 0; i < count; ++i) same += x[i] == y[i];
  return same;
}

/// Counts what is not finite on either side and takes it out of both; returns how many.
std::size_t set_aside(float* x, float* y, std::size_t count, PairMeasure& pair) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isfinite(x[i]) && std::isfinite(y[i])) continue;
    const bool same = (std::isnan(x[i]) && std::isnan(y[i])) || x[i] == y[i];
    ++(same ? pair.equal : pair.odd);
    x[i] = y[i] = 0;
    ++found;
  }
  return found;
}

void add_block(float* x, float* y, std::size_t count, PairMeasure& pair) {
  Sums sums;
  std::fill(x + count, x + (count + kLanes - 1) / kLanes * kLanes, 0.0f);
  std::fill(y + count, y + (count + kLanes - 1) / kLanes * kLanes, 0.0f);
  gather(x, y, (count + kLanes - 1) / kLanes * kLanes, sums);
  const std::size_t filled = (kLanes - count % kLanes) % kLanes;
  pair.dot += total(sums.dot);
  pair.squares_a += total(sums.left);
  pair.squares_b += total(sums.right);
  pair.squared_distance += total(sums.apart);
  float most = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    pair.within_one += sums.one[lane];
    pair.within_five += sums.five[lane];
    pair.max_relative = std::max(pair.max_relative, static_cast<double>(sums.relative[lane]));
    most = std::max(most, sums.most[lane]);
  }
  pair.within_one -= filled;
  pair.within_five -= filled;
  if (most <= pair.max_absolute) return;
  pair.max_absolute = most;
  std::size_t at = 0;
  while (std::fabs(x[at] - y[at]) != most) ++at;
  pair.worst = pair.count + at;
}

}  // namespace

void PairMeasure::add(const void* a, DType a_dtype, const void* b, DType b_dtype, std::size_t elements) {
  alignas(64) std::array<float, kBlock> x, y;
  const auto* left = static_cast<const std::byte*>(a);
  const auto* right = static_cast<const std::byte*>(b);
  const bool has_ulps =
      a_dtype == b_dtype && (a_dtype == DType::f32 || a_dtype == DType::bf16 || a_dtype == DType::f16);
  while (elements > 0) {
    const std::size_t now = std::min(elements, kBlock);
    to_f32(x.data(), left, a_dtype, now);
    to_f32(y.data(), right, b_dtype, now);
    const bool regular = all_finite(x.data(), now) && all_finite(y.data(), now);
    if (has_ulps) add_ulps(left, right, a_dtype, now, x.data(), y.data(), regular, *this);
    std::size_t odd_ones = 0;
    if (!regular) odd_ones = set_aside(x.data(), y.data(), now, *this);
    equal += count_equal(x.data(), y.data(), now) - odd_ones;  // they are zeros by now, and counted already
    add_block(x.data(), y.data(), now, *this);
    within_one -= odd_ones;
    within_five -= odd_ones;
    finite += now - odd_ones;
    count += now;
    left += now * size_of(a_dtype);
    right += now * size_of(b_dtype);
    elements -= now;
  }
}

void PairMeasure::add(const PairMeasure& next) {
  if (next.max_absolute > max_absolute) {
    max_absolute = next.max_absolute;
    worst = count + next.worst;
  }
  count += next.count;
  finite += next.finite;
  equal += next.equal;
  odd += next.odd;
  within_one += next.within_one;
  within_five += next.within_five;
  dot += next.dot;
  squares_a += next.squares_a;
  squares_b += next.squares_b;
  squared_distance += next.squared_distance;
  max_relative = std::max(max_relative, next.max_relative);
  for (std::size_t k = 0; k < kUlpBuckets; ++k) ulps[k] += next.ulps[k];
}

void PairMeasure::add_together(const void* a, DType a_dtype, const void* b, DType b_dtype,
                               std::size_t elements) {
  // The parts do not depend on the machine, so neither does the result.
  constexpr std::size_t kPart = 1 << 18;
  const std::size_t parts = (elements + kPart - 1) / kPart;
  std::vector<PairMeasure> measures(parts);
  const auto measure = [&](std::size_t first, std::size_t step) {
    for (std::size_t part = first; part < parts; part += step) {
      const std::size_t start = part * kPart;
      measures[part].add(static_cast<const std::byte*>(a) + start * size_of(a_dtype), a_dtype,
                         static_cast<const std::byte*>(b) + start * size_of(b_dtype), b_dtype,
                         std::min(kPart, elements - start));
    }
  };
  const std::size_t helpers =
      std::min<std::size_t>({parts, 4, std::max(1u, std::thread::hardware_concurrency())});
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < helpers; ++i) threads.emplace_back(measure, i, helpers);
  if (helpers > 0) measure(0, helpers);
  for (std::thread& thread : threads) thread.join();
  for (const PairMeasure& part : measures) add(part);
}

}  // namespace danceflux::align
