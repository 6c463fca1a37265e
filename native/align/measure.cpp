#include "align/measure.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace danceflux::align {
namespace {

constexpr std::size_t kBlock = 1024;  // elements; the signs repeat after a block, flipped by the block's own

// ---- CRC-32, eight bytes at a time ----------------------------------------------------------------------

using CrcTables = std::array<std::array<std::uint32_t, 256>, 8>;

CrcTables crc_tables() {
  CrcTables tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xedb88320u : 0u);
    tables[0][i] = value;
  }
  for (std::size_t table = 1; table < 8; ++table) {
    for (std::size_t i = 0; i < 256; ++i) {
      const std::uint32_t before = tables[table - 1][i];
      tables[table][i] = (before >> 8) ^ tables[0][before & 255];
    }
  }
  return tables;
}

// ---- signs ----------------------------------------------------------------------------------------------

std::uint32_t scatter(std::uint32_t x) {
  x *= 0x9e3779b1u;
  x ^= x >> 15;
  x *= 0x2c1b3c6du;
  x ^= x >> 12;
  x *= 0x297a2d39u;
  return x ^ (x >> 15);
}

using Signs = std::array<std::array<float, kBlock>, kSketches>;

Signs block_signs() {
  Signs signs{};
  for (std::uint32_t i = 0; i < kBlock; ++i) {
    const std::uint32_t bits = scatter(i);
    for (std::size_t k = 0; k < kSketches; ++k) signs[k][i] = bits >> k & 1 ? 1.0f : -1.0f;
  }
  return signs;
}

const Signs& signs() {
  static const Signs table = block_signs();
  return table;
}

double block_sign(std::uint64_t block, std::size_t k) {
  return scatter(static_cast<std::uint32_t>(block) + 0x51ed270bu) >> k & 1 ? 1.0 : -1.0;
}

// ---- numbers --------------------------------------------------------------------------------------------

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

// A sum has eight lanes, so that the compiler may keep them in vectors; the order is fixed all the same.
constexpr std::size_t kLanes = 8;
struct Lanes {
  std::array<double, kLanes> value{};
  double total() const {
    return ((value[0] + value[4]) + (value[2] + value[6])) + ((value[1] + value[5]) + (value[3] + value[7]));
  }
};

bool all_finite(const float* x, std::size_t count) {
  std::uint32_t most = 0;
  for (std::size_t i = 0; i < count; ++i)
    most = std::max(most, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
  return most < 0x7f800000u;
}

/// Sets what is not finite to zero, after counting it.
void set_aside(float* x, std::size_t count, Measure& measure) {
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isnan(x[i])) ++measure.nan;
    if (std::isinf(x[i])) ++measure.inf;
    if (!std::isfinite(x[i])) x[i] = 0;
  }
}

/// The finite elements' part: extremes are taken over all of them, so a block that holds others goes one by
/// one.
void add_extremes(const float* x, std::size_t count, Measure& measure) {
  float low = std::numeric_limits<float>::infinity(), high = -low;
  for (std::size_t i = 0; i < count; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  measure.min = std::min(measure.min, static_cast<double>(low));
  measure.max = std::max(measure.max, static_cast<double>(high));
}

void add_sums(const float* x, std::size_t count, std::size_t within, std::uint64_t block, Measure& measure) {
  Lanes sum, squares;
  std::array<Lanes, kSketches> sketch;
  const Signs& table = signs();
  const auto one = [&](std::size_t i, std::size_t lane) {
    const double value = x[i];
    sum.value[lane] += value;
    squares.value[lane] += value * value;
    for (std::size_t k = 0; k < kSketches; ++k)
      sketch[k].value[lane] += static_cast<double>(x[i] * table[k][within + i]);
  };
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) one(i + lane, lane);
  }
  for (std::size_t lane = 0; i < count; ++i, ++lane) one(i, lane);
  measure.sum += sum.total();
  measure.squares += squares.total();
  for (std::size_t k = 0; k < kSketches; ++k) measure.sketch[k] += block_sign(block, k) * sketch[k].total();
}

void add_block(float* x, std::size_t count, std::uint64_t position, Measure& measure) {
  if (all_finite(x, count)) {
    add_extremes(x, count, measure);
  } else {
    for (std::size_t i = 0; i < count; ++i) {
      if (std::isfinite(x[i])) add_extremes(x + i, 1, measure);
    }
    set_aside(x, count, measure);
  }
  add_sums(x, count, position % kBlock, position / kBlock, measure);
}

// ---- pairs ----------------------------------------------------------------------------------------------

/// Bits as an integer that grows with the number: neighbours differ by one.
std::int64_t ordered(std::uint32_t bits, int width) {
  const std::uint32_t sign = 1u << (width - 1);
  return bits & sign ? -static_cast<std::int64_t>(bits & (sign - 1)) : static_cast<std::int64_t>(bits);
}

std::uint32_t bits_at(const void* data, std::size_t i, bool wide) {
  if (wide) return static_cast<const std::uint32_t*>(data)[i];
  return static_cast<const std::uint16_t*>(data)[i];
}

std::size_t ulp_bucket(std::uint64_t distance) {
  if (distance <= 2) return static_cast<std::size_t>(distance);
  const std::size_t bucket = 1 + static_cast<std::size_t>(std::bit_width(distance - 1));
  return std::min(bucket, kUlpBuckets - 2);
}

void add_ulps(const void* a, const void* b, DType dtype, const float* x, const float* y, std::size_t count,
              PairMeasure& pair) {
  const bool wide = dtype == DType::f32;
  const int width = wide ? 32 : 16;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t left = bits_at(a, i, wide), right = bits_at(b, i, wide);
    if (left == right) {
      ++pair.ulps[0];
    } else if (!std::isfinite(x[i]) || !std::isfinite(y[i])) {
      ++pair.ulps[std::isnan(x[i]) && std::isnan(y[i]) ? 0 : kUlpBuckets - 1];
    } else {
      const std::int64_t distance = ordered(left, width) - ordered(right, width);
      ++pair.ulps[ulp_bucket(static_cast<std::uint64_t>(distance < 0 ? -distance : distance))];
    }
  }
}

void add_odd(float& x, float& y, PairMeasure& pair) {
  const bool same = (std::isnan(x) && std::isnan(y)) || x == y;
  ++(same ? pair.equal : pair.odd);
  x = y = 0;
}

void add_distances(const float* x, const float* y, std::size_t count, std::uint64_t position,
                   PairMeasure& pair) {
  Lanes dot, left, right, distance;
  std::array<float, kLanes> most{};
  std::array<std::uint32_t, kLanes> one{}, five{};
  float worst_relative = 0;
  const auto add = [&](std::size_t i, std::size_t lane) {
    const double a = x[i], b = y[i], d = a - b;
    dot.value[lane] += a * b;
    left.value[lane] += a * a;
    right.value[lane] += b * b;
    distance.value[lane] += d * d;
    const float size = std::abs(x[i] - y[i]), scale = std::abs(y[i]);
    most[lane] = size > most[lane] ? size : most[lane];
    one[lane] += size <= 0.001f * scale;
    five[lane] += size <= 0.005f * scale;
  };
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (std::size_t lane = 0; i < count; ++i, ++lane) add(i, lane);
  for (std::size_t k = 0; k < count; ++k) {
    // An error beside an exact zero is measured by the smallest step of a double, as in the usual tools: it
    // is huge.
    const float scale = std::abs(y[k]), size = std::abs(x[k] - y[k]);
    const float relative = size == 0 ? 0 : size / (scale > 0 ? scale : 2.220446e-16f);
    worst_relative = relative > worst_relative ? relative : worst_relative;
  }
  pair.dot += dot.total();
  pair.squares_a += left.total();
  pair.squares_b += right.total();
  pair.squared_distance += distance.total();
  pair.max_relative = std::max(pair.max_relative, static_cast<double>(worst_relative));
  float block_most = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    pair.within_one += one[lane];
    pair.within_five += five[lane];
    block_most = std::max(block_most, most[lane]);
  }
  if (block_most > pair.max_absolute) {
    pair.max_absolute = block_most;
    for (std::size_t k = 0; k < count; ++k) {
      if (std::abs(x[k] - y[k]) == block_most) {
        pair.worst = position + k;
        break;
      }
    }
  }
}

}  // namespace

std::uint32_t crc32(std::uint32_t crc, const void* bytes, std::size_t count) {
  static const CrcTables tables = crc_tables();
  const auto* at = static_cast<const unsigned char*>(bytes);
  std::uint32_t value = ~crc;
  for (; count >= 8; at += 8, count -= 8) {
    std::uint32_t low = 0, high = 0;
    std::memcpy(&low, at, 4);
    std::memcpy(&high, at + 4, 4);
    low ^= value;
    value = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^
            tables[4][low >> 24] ^ tables[3][high & 255] ^ tables[2][high >> 8 & 255] ^
            tables[1][high >> 16 & 255] ^ tables[0][high >> 24];
  }
  for (; count > 0; ++at, --count) value = tables[0][(value ^ *at) & 255] ^ (value >> 8);
  return ~value;
}

void Measure::add(const void* data, DType dtype, std::size_t elements, bool numbers) {
  crc = crc32(crc, data, elements * size_of(dtype));
  if (!numbers) {
    count += elements;
    return;
  }
  std::array<float, kBlock> block;
  const auto* at = static_cast<const std::byte*>(data);
  while (elements > 0) {
    const std::size_t now = std::min(elements, kBlock - static_cast<std::size_t>(count % kBlock));
    to_f32(block.data(), at, dtype, now);
    add_block(block.data(), now, count, *this);
    count += now;
    at += now * size_of(dtype);
    elements -= now;
  }
}

void PairMeasure::add(const void* a, DType a_dtype, const void* b, DType b_dtype, std::size_t elements) {
  std::array<float, kBlock> x, y;
  const auto* left = static_cast<const std::byte*>(a);
  const auto* right = static_cast<const std::byte*>(b);
  const bool has_ulps =
      a_dtype == b_dtype && (a_dtype == DType::f32 || a_dtype == DType::bf16 || a_dtype == DType::f16);
  while (elements > 0) {
    const std::size_t now = std::min(elements, kBlock);
    to_f32(x.data(), left, a_dtype, now);
    to_f32(y.data(), right, b_dtype, now);
    const bool same_bits = a_dtype == b_dtype && std::memcmp(left, right, now * size_of(a_dtype)) == 0;
    if (has_ulps) {
      if (same_bits)
        ulps[0] += now;
      else
        add_ulps(left, right, a_dtype, x.data(), y.data(), now, *this);
    }
    std::size_t odd_ones = 0;
    if (!all_finite(x.data(), now) || !all_finite(y.data(), now)) {
      for (std::size_t i = 0; i < now; ++i) {
        if (std::isfinite(x[i]) && std::isfinite(y[i])) continue;
        add_odd(x[i], y[i], *this);
        ++odd_ones;
      }
    }
    for (std::size_t i = 0; i < now; ++i) equal += x[i] == y[i];
    equal -= odd_ones;  // they are zeros by now, and counted already
    add_distances(x.data(), y.data(), now, count, *this);
    within_one -= odd_ones;
    within_five -= odd_ones;
    finite += now - odd_ones;
    count += now;
    left += now * size_of(a_dtype);
    right += now * size_of(b_dtype);
    elements -= now;
  }
}

}  // namespace danceflux::align
