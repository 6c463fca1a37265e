#include "align/measure.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "align/numbers.h"

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

// A sum has eight lanes, so that the compiler may keep them in vectors; the order is fixed all the same.
constexpr std::size_t kLanes = 8;

double total(const double* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

struct Sums {
  double sum[kLanes] = {}, squares[kLanes] = {}, sketch[kSketches][kLanes] = {};
};

/// `count` is a multiple of kLanes; `within` is where in a block the first element stands.
DANCEFLUX_WIDER void gather(const float* __restrict x, std::size_t count, const float* __restrict table,
                            Sums& __restrict sums) {
  for (std::size_t i = 0; i < count; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double value = x[i + lane];
      sums.sum[lane] += value;
      sums.squares[lane] += value * value;
    }
    for (std::size_t k = 0; k < kSketches; ++k) {
      for (std::size_t lane = 0; lane < kLanes; ++lane)
        sums.sketch[k][lane] += static_cast<double>(x[i + lane] * table[k * kBlock + i + lane]);
    }
  }
}

void add_sums(float* x, std::size_t count, std::size_t within, std::uint64_t block, Measure& measure) {
  Sums sums;
  const Signs& table = signs();
  const std::size_t whole = count / kLanes * kLanes;
  gather(x, whole, &table[0][within], sums);
  for (std::size_t i = whole, lane = 0; i < count; ++i, ++lane) {
    const double value = x[i];
    sums.sum[lane] += value;
    sums.squares[lane] += value * value;
    for (std::size_t k = 0; k < kSketches; ++k)
      sums.sketch[k][lane] += static_cast<double>(x[i] * table[k][within + i]);
  }
  measure.sum += total(sums.sum);
  measure.squares += total(sums.squares);
  for (std::size_t k = 0; k < kSketches; ++k)
    measure.sketch[k] += block_sign(block, k) * total(sums.sketch[k]);
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

}  // namespace danceflux::align
