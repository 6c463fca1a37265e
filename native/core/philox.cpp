#include "core/philox.h"

#include <bit>
#include <cmath>
#include <numbers>

namespace danceflux {
namespace {

using Words = std::array<std::uint32_t, 4>;

std::array<std::uint32_t, 2> wide_product(std::uint32_t a, std::uint32_t b) {
  const std::uint64_t product = std::uint64_t{a} * b;
  return {static_cast<std::uint32_t>(product >> 32), static_cast<std::uint32_t>(product)};
}

// What all blocks of one key share. A key has more words than a counter, so it goes through the cipher once.
struct Stream {
  Words base;
  explicit Stream(const NoiseKey& key)
      : base(philox4x32({key.iteration, key.prompt, key.sample, key.timestep},
                        {static_cast<std::uint32_t>(key.seed), static_cast<std::uint32_t>(key.seed >> 32)})),
        purpose(key.purpose) {}
  Words block(std::uint64_t index) const {
    return philox4x32(
        {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), base[2], base[3]},
        {base[0], base[1] ^ purpose});
  }
  std::uint32_t purpose;
};

// Natural logarithm for 0 < u <= 1 from +, -, *, / alone, which IEEE fixes to the bit: u = m 2^e with m
// within a factor sqrt 2 of 1, and ln m = 2 artanh((m - 1) / (m + 1)).
double log_unit(double u) {
  int exponent = static_cast<int>((std::bit_cast<std::uint64_t>(u) >> 52) & 0x7ff) - 1023;
  double mantissa =
      std::bit_cast<double>((std::bit_cast<std::uint64_t>(u) & 0xfffffffffffffULL) | 0x3ff0000000000000ULL);
  if (mantissa > std::numbers::sqrt2) mantissa *= 0.5, ++exponent;
  const double s = (mantissa - 1) / (mantissa + 1), square = s * s;
  double sum = 0;
  for (int odd = 19; odd >= 1; odd -= 2) sum = sum * square + 1.0 / odd;
  return exponent * std::numbers::ln2 + 2 * s * sum;
}

struct SinCos {
  double sin, cos;
};

// sin and cos of 2 pi turn for 0 <= turn < 1: Taylor series within an eighth of a turn, then quarter turns,
// exactly.
SinCos sin_cos_turn(double turn) {
  const double quarters = turn * 4;
  const int nearest = static_cast<int>(quarters + 0.5);
  const double x = (quarters - nearest) * (std::numbers::pi / 2), square = x * x;
  double sine = 0, cosine = 0;
  for (int n = 17; n >= 3; n -= 2) sine = (1 - sine) * square / (n * (n - 1));
  for (int n = 16; n >= 2; n -= 2) cosine = (1 - cosine) * square / (n * (n - 1));
  sine = x * (1 - sine);
  cosine = 1 - cosine;
  switch (nearest & 3) {
    case 1:
      return {cosine, -sine};
    case 2:
      return {-sine, -cosine};
    case 3:
      return {-cosine, sine};
    default:
      return {sine, cosine};
  }
}

// Box-Muller: two words, two normals.
std::array<float, 2> normal_pair(std::uint32_t a, std::uint32_t b) {
  const double radius = std::sqrt(-2 * log_unit((a + 1.0) * 0x1p-32));
  const SinCos angle = sin_cos_turn(b * 0x1p-32);
  return {static_cast<float>(radius * angle.cos), static_cast<float>(radius * angle.sin)};
}

}  // namespace

Words philox4x32(Words counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const auto [high0, low0] = wide_product(0xD2511F53u, counter[0]);
    const auto [high1, low1] = wide_product(0xCD9E8D57u, counter[2]);
    counter = {high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

void keyed_normal(const NoiseKey& key, std::span<float> out) {
  const Stream stream(key);
  for (std::size_t i = 0; i < out.size(); i += 4) {
    const Words words = stream.block(i / 4);
    const auto first = normal_pair(words[0], words[1]), second = normal_pair(words[2], words[3]);
    const float values[4] = {first[0], first[1], second[0], second[1]};
    for (std::size_t j = 0; j < 4 && i + j < out.size(); ++j) out[i + j] = values[j];
  }
}

std::uint64_t keyed_bits(const NoiseKey& key, std::uint64_t index) {
  const Words words = Stream(key).block(index);
  return std::uint64_t{words[1]} << 32 | words[0];
}

void keyed_uniform(std::span<float> out, std::uint64_t seed, const std::string& name) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (unsigned char letter : name) hash = (hash ^ letter) * 0x100000001b3ULL;
  const Stream stream(
      NoiseKey{seed, static_cast<std::uint32_t>(hash), static_cast<std::uint32_t>(hash >> 32)});
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::uint32_t word = stream.block(i / 4)[i % 4];
    out[i] = static_cast<float>(static_cast<std::int32_t>(word >> 8) - (1 << 23)) * 0x1p-23f;
  }
}

}  // namespace danceflux
