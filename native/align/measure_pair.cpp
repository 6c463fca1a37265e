// Distances of two tensors, several elements at a time: what takes the time when gigabytes are compared. A
// block stays in the first cache while it is looked at: sums, places in the last place, their histogram.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "align/measure.h"
#include "align/numbers.h"

namespace danceflux::align {
namespace {

/// A few elements' sums side by side; the order in which they come together is fixed.
struct Sums {
  double dot[kLanes] = {}, left[kLanes] = {}, right[kLanes] = {}, apart[kLanes] = {};
  float most[kLanes] = {}, relative[kLanes] = {};
  std::uint32_t one[kLanes] = {}, five[kLanes] = {}, equal[kLanes] = {};
};

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
      sums.equal[lane] += x[i + lane] == y[i + lane];
    }
  }
}

// ---- units in the last place ----------------------------------------------------------------------------

/// The histogram's bucket of each pair: the exponent of the distance in the last place. `Bits` are the
/// numbers as they are stored: sign and size.
template <class Bits>
inline __attribute__((always_inline)) void buckets(const Bits* __restrict a, const Bits* __restrict b,
                                                   std::size_t count, std::uint8_t* __restrict out) {
  constexpr std::uint32_t kLast = kUlpBuckets - 2, kMost = 1u << 23,
                          kSize = (1u << (8 * sizeof(Bits) - 1)) - 1;
  for (std::size_t i = 0; i < count; ++i) {
    // All ones where the sign is set: x ^ s - s is then -x.
    const std::int32_t sign_a = -static_cast<std::int32_t>(a[i] > kSize),
                       sign_b = -static_cast<std::int32_t>(b[i] > kSize);
    const std::int32_t left = (static_cast<std::int32_t>(a[i] & kSize) ^ sign_a) - sign_a,
                       right = (static_cast<std::int32_t>(b[i] & kSize) ^ sign_b) - sign_b;
    // Unsigned: numbers of two signs may be almost 2^32 apart.
    const std::uint32_t distance = static_cast<std::uint32_t>(left > right ? left : right) -
                                   static_cast<std::uint32_t>(left > right ? right : left);
    // 3..4 -> 2, 5..8 -> 3, ...: the exponent of distance - 1, which is exact below 2^24 and saturated above.
    const std::uint32_t below = (distance > 2 ? distance : 2) - 1, bound = below < kMost ? below : kMost;
    const std::uint32_t exponent =
        (std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(bound))) >> 23) - 127;
    const std::uint32_t bucket = distance < 2 + exponent ? distance : 2 + exponent;
    out[i] = static_cast<std::uint8_t>(bucket < kLast ? bucket : kLast);
  }
}

DANCEFLUX_WIDER void buckets_wide(const std::uint32_t* __restrict a, const std::uint32_t* __restrict b,
                                  std::size_t count, std::uint8_t* __restrict out) {
  buckets(a, b, count, out);
}

DANCEFLUX_WIDER void buckets_narrow(const std::uint16_t* __restrict a, const std::uint16_t* __restrict b,
                                    std::size_t count, std::uint8_t* __restrict out) {
  buckets(a, b, count, out);
}

/// Adds up what `count` buckets hold; up to the next multiple of kGroup they hold 255. One look at all of
/// them per kind of bucket, without branches, and none for the many large ones that are mostly empty: the
/// search ends when all are found.
constexpr std::size_t kGroup = 64;

DANCEFLUX_WIDER void add_buckets(const std::uint8_t* bucket, std::size_t count, std::uint64_t* totals) {
  static_assert(kBlock / kGroup * 8 < 256,
                "the counts of a group fit in bytes, also when eight come together");
  typedef std::uint8_t Group __attribute__((vector_size(kGroup)));
  typedef std::uint64_t Words __attribute__((vector_size(kGroup)));
  constexpr std::uint64_t kEven = 0x00ff00ff00ff00ffu, kOnes = 0x0001000100010001u;
  std::size_t left = count;
  for (std::size_t kind = 0; kind < kUlpBuckets && left > 0; ++kind) {
    const Group wanted = Group{} + static_cast<std::uint8_t>(kind);
    Group found{};
    for (std::size_t i = 0; i < count; i += kGroup) {
      Group now;
      std::memcpy(&now, bucket + i, kGroup);
      found -= reinterpret_cast<Group>(now == wanted);  // true is -1
    }
    const Words words = reinterpret_cast<Words>(found);
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < kGroup / 8; ++i) bytes += words[i];
    const std::uint64_t pairs = (bytes & kEven) + (bytes >> 8 & kEven);
    const std::uint64_t here = pairs * kOnes >> 48;
    totals[kind] += here;
    left -= here;
  }
}

/// Pairs that have no distance: they stand in the first bucket when they are the same, otherwise in the last.
void place_odd_ones(const float* x, const float* y, std::size_t count, std::uint8_t* bucket) {
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isfinite(x[i]) && std::isfinite(y[i])) continue;
    const bool same = x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]));
    bucket[i] = same ? 0 : kUlpBuckets - 1;
  }
}

void add_ulps(const std::byte* a, const std::byte* b, DType dtype, std::size_t count, const float* x,
              const float* y, bool finite, PairMeasure& pair) {
  alignas(kGroup) std::uint8_t bucket[kBlock];
  const std::size_t padded = (count + kGroup - 1) / kGroup * kGroup;
  std::memset(bucket + count, 255, padded - count);
  if (dtype == DType::f32)
    buckets_wide(reinterpret_cast<const std::uint32_t*>(a), reinterpret_cast<const std::uint32_t*>(b), count,
                 bucket);
  else
    buckets_narrow(reinterpret_cast<const std::uint16_t*>(a), reinterpret_cast<const std::uint16_t*>(b),
                   count, bucket);
  if (!finite) place_odd_ones(x, y, count, bucket);
  add_buckets(bucket, count, pair.ulps.data());
}

// ---- a block --------------------------------------------------------------------------------------------

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

/// `filled` zeros stand behind the `count` elements, and `odd_ones` among them in place of what was set
/// aside.
void add_block(const float* x, const float* y, std::size_t count, std::size_t filled, std::size_t odd_ones,
               PairMeasure& pair) {
  Sums sums;
  gather(x, y, count + filled, sums);
  pair.dot += total(sums.dot);
  pair.squares_a += total(sums.left);
  pair.squares_b += total(sums.right);
  pair.squared_distance += total(sums.apart);
  const std::size_t zeros = filled + odd_ones;  // equal, and counted already or not to be counted
  pair.equal += total(sums.equal) - zeros;
  pair.within_one += total(sums.one) - zeros;
  pair.within_five += total(sums.five) - zeros;
  const float relative = *std::max_element(sums.relative, sums.relative + kLanes),
              most = *std::max_element(sums.most, sums.most + kLanes);
  pair.max_relative = std::max<double>(pair.max_relative, relative);
  if (most <= pair.max_absolute) return;
  pair.max_absolute = most;
  std::size_t at = 0;
  while (std::fabs(x[at] - y[at]) != most) ++at;
  pair.worst = pair.count + at;
}

/// The elements of one side as f32.
struct Side {
  alignas(64) float copy[kBlock];
  const float* values = nullptr;

  void read(const std::byte* data, DType dtype, std::size_t count) {
    // Whole blocks of f32 are read where they lie.
    values = copy;
    if (dtype == DType::f32 && count % kLanes == 0)
      values = reinterpret_cast<const float*>(data);
    else
      to_f32(copy, data, dtype, count);
  }
  void own(std::size_t count) {
    if (values != copy) std::copy_n(values, count, copy);
    values = copy;
  }
};

}  // namespace

void PairMeasure::add(const void* a, DType a_dtype, const void* b, DType b_dtype, std::size_t elements) {
  Side x, y;
  const auto* left = static_cast<const std::byte*>(a);
  const auto* right = static_cast<const std::byte*>(b);
  const bool has_ulps =
      a_dtype == b_dtype && (a_dtype == DType::f32 || a_dtype == DType::bf16 || a_dtype == DType::f16);
  while (elements > 0) {
    const std::size_t now = std::min(elements, kBlock), filled = (kLanes - now % kLanes) % kLanes;
    x.read(left, a_dtype, now);
    y.read(right, b_dtype, now);
    const bool regular = all_finite(x.values, now) && all_finite(y.values, now);
    if (has_ulps) add_ulps(left, right, a_dtype, now, x.values, y.values, regular, *this);
    std::size_t odd_ones = 0;
    if (!regular) {
      x.own(now);
      y.own(now);
      odd_ones = set_aside(x.copy, y.copy, now, *this);
    }
    if (filled > 0) {  // neither side lies elsewhere then
      std::fill_n(x.copy + now, filled, 0.0f);
      std::fill_n(y.copy + now, filled, 0.0f);
    }
    add_block(x.values, y.values, now, filled, odd_ones, *this);
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

}  // namespace danceflux::align
