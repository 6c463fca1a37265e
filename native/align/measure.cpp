#include "align/measure.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "align/numbers.h"

namespace danceflux::align {
namespace {

// ---- weights --------------------------------------------------------------------------------------------

std::uint32_t scatter(std::uint32_t x) {
  x *= 0x9e3779b1u;
  x ^= x >> 15;
  x *= 0x2c1b3c6du;
  x ^= x >> 12;
  x *= 0x297a2d39u;
  return x ^ (x >> 15);
}

using Weights = std::array<std::array<float, kBlock>, kSketches>;

/// Even over -sqrt(3) .. sqrt(3), so that the variance is 1. They repeat after a block, under a sign of its
/// own.
Weights block_weights() {
  Weights weights{};
  for (std::uint32_t k = 0; k < kSketches; ++k) {
    for (std::uint32_t i = 0; i < kBlock; ++i)
      weights[k][i] = static_cast<float>((scatter(k * static_cast<std::uint32_t>(kBlock) + i) * 0x1p-31 - 1) *
                                         1.7320508075688772);
  }
  return weights;
}

const Weights& weights() {
  static const Weights table = block_weights();
  return table;
}

double block_sign(std::uint64_t block, std::size_t k) {
  return scatter(static_cast<std::uint32_t>(block) + 0x51ed270bu) >> k & 1 ? 1.0 : -1.0;
}

// ---- numbers --------------------------------------------------------------------------------------------

struct Sums {
  double sum[kLanes] = {}, squares[kLanes] = {};
  float low[kLanes], high[kLanes];
};

/// `count` is a multiple of kLanes.
DANCEFLUX_WIDER void gather(const float* __restrict x, std::size_t count, Sums& __restrict sums) {
  for (std::size_t i = 0; i < count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane];
      sums.low[lane] = value < sums.low[lane] ? value : sums.low[lane];
      sums.high[lane] = value > sums.high[lane] ? value : sums.high[lane];
    }
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double value = x[i + lane];
      sums.sum[lane] += value;
      sums.squares[lane] += value * value;
    }
  }
}

/// One projection: `table` are the weights of the first element and on. By itself, so that its lanes stay in
/// registers.
DANCEFLUX_WIDER void project(const float* __restrict x, std::size_t count, const float* __restrict table,
                             double* __restrict lanes) {
  double sum[kLanes] = {};
  for (std::size_t i = 0; i < count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane)
      sum[lane] += static_cast<double>(x[i + lane] * table[i + lane]);
  }
  for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = sum[lane];
}

void add_sums(const float* x, std::size_t count, std::size_t within, std::uint64_t block, Measure& measure) {
  Sums sums;
  std::fill_n(sums.low, kLanes, std::numeric_limits<float>::infinity());
  std::fill_n(sums.high, kLanes, -std::numeric_limits<float>::infinity());
  const Weights& table = weights();
  const std::size_t whole = count / kLanes * kLanes;
  gather(x, whole, sums);
  for (std::size_t i = whole, lane = 0; i < count; ++i, ++lane) {
    const double value = x[i];
    sums.low[lane] = std::min(sums.low[lane], x[i]);
    sums.high[lane] = std::max(sums.high[lane], x[i]);
    sums.sum[lane] += value;
    sums.squares[lane] += value * value;
  }
  measure.min = std::min<double>(measure.min, *std::min_element(sums.low, sums.low + kLanes));
  measure.max = std::max<double>(measure.max, *std::max_element(sums.high, sums.high + kLanes));
  measure.sum += total(sums.sum);
  measure.squares += total(sums.squares);
  for (std::size_t k = 0; k < kSketches; ++k) {
    double lanes[kLanes];
    project(x, whole, &table[k][within], lanes);
    for (std::size_t i = whole; i < count; ++i)
      lanes[i - whole] += static_cast<double>(x[i] * table[k][within + i]);
    measure.sketch[k] += block_sign(block, k) * total(lanes);
  }
}

/// Of a block that holds NaN or infinities: the extremes of the others, which are taken aside before zeros
/// stand in their place.
void add_odd_block(float* x, std::size_t count, std::size_t within, std::uint64_t block, Measure& measure) {
  float low = std::numeric_limits<float>::infinity(), high = -low;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isfinite(x[i])) {
      low = std::min(low, x[i]);
      high = std::max(high, x[i]);
      continue;
    }
    ++(std::isnan(x[i]) ? measure.nan : measure.inf);
    x[i] = 0;
  }
  const double min = std::min<double>(measure.min, low), max = std::max<double>(measure.max, high);
  add_sums(x, count, within, block, measure);
  measure.min = min;
  measure.max = max;
}

}  // namespace

void to_f32(float* out, const void* data, DType dtype, std::size_t count) {
  switch (dtype) {
    case DType::i32:
      for (std::size_t i = 0; i < count; ++i)
        out[i] = static_cast<float>(static_cast<const std::int32_t*>(data)[i]);
      return;
    case DType::i64:
      for (std::size_t i = 0; i < count; ++i)
        out[i] = static_cast<float>(static_cast<const std::int64_t*>(data)[i]);
      return;
    case DType::u8:
      for (std::size_t i = 0; i < count; ++i)
        out[i] = static_cast<float>(static_cast<const std::uint8_t*>(data)[i]);
      return;
    default:
      convert_elements(out, DType::f32, data, dtype, count);
  }
}

DANCEFLUX_WIDER bool all_finite(const float* x, std::size_t count) {
  std::uint32_t odd = 0;
  for (std::size_t i = 0; i < count; ++i)
    odd += (std::bit_cast<std::uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u;
  return odd == 0;
}

void Measure::add(const void* data, DType dtype, std::size_t elements, bool numbers) {
  crc = crc32(crc, data, elements * size_of(dtype));
  if (!numbers) {
    count += elements;
    return;
  }
  alignas(64) std::array<float, kBlock> block;
  const auto* at = static_cast<const std::byte*>(data);
  while (elements > 0) {
    const std::size_t within = count % kBlock, now = std::min(elements, kBlock - within);
    const float* x = block.data();
    // What lies there as f32 is read where it lies.
    if (dtype == DType::f32 && reinterpret_cast<std::uintptr_t>(at) % alignof(float) == 0)
      x = reinterpret_cast<const float*>(at);
    else
      to_f32(block.data(), at, dtype, now);
    if (all_finite(x, now)) {
      add_sums(x, now, within, count / kBlock, *this);
    } else {
      if (x != block.data()) to_f32(block.data(), at, dtype, now);
      add_odd_block(block.data(), now, within, count / kBlock, *this);
    }
    count += now;
    at += now * size_of(dtype);
    elements -= now;
  }
}

}  // namespace danceflux::align
