// The keyed generator: Philox by its published answers, normals by their distribution, and the very bits,
// frozen.
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "core/philox.h"
#include "crc32.h"
#include "harness.h"

namespace danceflux::test {
namespace {

using Words = std::array<std::uint32_t, 4>;

std::vector<float> normals(const NoiseKey& key, std::size_t count) {
  std::vector<float> values(count);
  keyed_normal(key, values);
  return values;
}

template <class T>
std::uint32_t frozen(const std::vector<T>& values) {
  return crc32(std::span<const T>(values));
}

double mean_power(const std::vector<float>& values, int power) {
  double sum = 0;
  for (const float value : values) sum += std::pow(static_cast<double>(value), power);
  return sum / static_cast<double>(values.size());
}

double normal_cdf(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }

// Largest distance between the empirical distribution and `cdf`, times sqrt(n): beyond 1.95 once in a
// thousand samples.
template <class Cdf>
double kolmogorov_smirnov(std::vector<float> values, Cdf cdf) {
  std::sort(values.begin(), values.end());
  const auto count = static_cast<double>(values.size());
  double distance = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double expected = cdf(values[i]), below = static_cast<double>(i) / count;
    distance = std::max({distance, expected - below, below + 1 / count - expected});
  }
  return distance * std::sqrt(count);
}

// In units of its standard deviation for independent samples.
double correlation(const std::vector<float>& a, const std::vector<float>& b, std::size_t lag = 0) {
  const std::size_t count = a.size() - lag;
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * b[i + lag];
  return sum / std::sqrt(static_cast<double>(count));
}

const NoiseKey kKey{
    .seed = 0x0123456789abcdef, .iteration = 7, .prompt = 3, .sample = 11, .timestep = 15, .purpose = 2};

// kKey with one field changed, each in its lowest or its highest bit.
std::vector<NoiseKey> neighbours() {
  std::vector<NoiseKey> keys;
  for (const std::uint32_t bit : {1u, 0x80000000u}) {
    NoiseKey key = kKey;
    keys.push_back((key.seed ^= bit, key)), key = kKey;
    keys.push_back((key.seed ^= std::uint64_t{bit} << 32, key)), key = kKey;
    keys.push_back((key.iteration ^= bit, key)), key = kKey;
    keys.push_back((key.prompt ^= bit, key)), key = kKey;
    keys.push_back((key.sample ^= bit, key)), key = kKey;
    keys.push_back((key.timestep ^= bit, key)), key = kKey;
    keys.push_back((key.purpose ^= bit, key));
  }
  NoiseKey swapped = kKey;
  std::swap(swapped.prompt, swapped.iteration);
  keys.push_back(swapped);
  return keys;
}

// Known answers of Random123 (kat_vectors, philox4x32-10): zeros, ones, digits of pi.
TEST("philox: known answers") {
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  CHECK(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
        (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The key goes through the cipher once, the position a second time; Box-Muller by libm in double is the
// reference.
TEST("keyed normal: is Box-Muller of its words, rounded once") {
  const Words base =
      philox4x32({kKey.iteration, kKey.prompt, kKey.sample, kKey.timestep}, {0x89abcdef, 0x01234567});
  const std::vector<float> got = normals(kKey, 20000);
  for (std::size_t i = 0; i < got.size(); i += 2) {
    const auto block = static_cast<std::uint32_t>(i / 4);
    const Words words = philox4x32({block, 0, base[2], base[3]}, {base[0], base[1] ^ kKey.purpose});
    const std::size_t pair = i % 4;
    const double radius = std::sqrt(-2 * std::log((words[pair] + 1.0) * 0x1p-32));
    const double angle = 2 * std::numbers::pi * (words[pair + 1] * 0x1p-32);
    // The two disagree in the last bits of the double, which one rounding in some hundred million shows.
    CHECK_NEAR(got[i], radius * std::cos(angle), 0x1p-24 * std::abs(got[i]) + 1e-14);
    CHECK_NEAR(got[i + 1], radius * std::sin(angle), 0x1p-24 * std::abs(got[i + 1]) + 1e-14);
  }
}

TEST("keyed normal: moments and distribution") {
  constexpr std::size_t kCount = 400'000;
  const double deviation = 1 / std::sqrt(static_cast<double>(kCount));
  for (const NoiseKey& key : {kKey, NoiseKey{}, NoiseKey{.seed = ~0ull, .purpose = 5}}) {
    const std::vector<float> values = normals(key, kCount);
    CHECK_NEAR(mean_power(values, 1), 0, 4 * deviation);
    CHECK_NEAR(mean_power(values, 2), 1, 4 * std::sqrt(2.0) * deviation);
    CHECK_NEAR(mean_power(values, 3), 0, 4 * std::sqrt(15.0) * deviation);
    CHECK_NEAR(mean_power(values, 4), 3, 4 * std::sqrt(96.0) * deviation);
    CHECK(kolmogorov_smirnov(values, normal_cdf) < 1.95);
    CHECK(std::all_of(values.begin(), values.end(),
                      [](float value) { return std::isfinite(value) && std::abs(value) < 6.7f; }));
    for (std::size_t lag = 1; lag <= 8; ++lag) CHECK(std::abs(correlation(values, values, lag)) < 4);
  }
}

// A fault of a generator likes to show in one of the four places of a block.
TEST("keyed normal: each place of a block is normal by itself") {
  const std::vector<float> values = normals(kKey, 400'000);
  for (std::size_t place = 0; place < 4; ++place) {
    std::vector<float> own;
    for (std::size_t i = place; i < values.size(); i += 4) own.push_back(values[i]);
    CHECK(kolmogorov_smirnov(own, normal_cdf) < 1.95);
  }
}

TEST("keyed normal: keys that differ in one field have nothing in common") {
  constexpr std::size_t kCount = 40'000;
  const std::vector<float> mine = normals(kKey, kCount);
  std::vector<float> squares;
  for (const float value : mine) squares.push_back((value * value - 1) / std::numbers::sqrt2_v<float>);
  for (const NoiseKey& key : neighbours()) {
    const std::vector<float> other = normals(key, kCount);
    CHECK(std::abs(correlation(mine, other)) < 4);
    std::vector<float> other_squares;
    for (const float value : other)
      other_squares.push_back((value * value - 1) / std::numbers::sqrt2_v<float>);
    CHECK(std::abs(correlation(squares, other_squares)) < 4);
    std::size_t equal = 0;
    for (std::size_t i = 0; i < kCount; ++i) equal += mine[i] == other[i];
    CHECK(equal <= 2);
    // Nor is one stream the other, moved: no value of the first block turns up early in the other.
    for (std::size_t i = 0; i < 4; ++i)
      CHECK(std::find(other.begin(), other.begin() + 4000, mine[i]) == other.begin() + 4000);
  }
}

TEST("keyed normal: a draw begins with every shorter one") {
  const std::vector<float> longest = normals(kKey, 1037);
  for (const std::size_t count : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 63, 64, 65, 1036}) {
    const std::vector<float> shorter = normals(kKey, count);
    CHECK(std::equal(shorter.begin(), shorter.end(), longest.begin()));
  }
}

TEST("keyed normal: nothing is written behind the draw") {
  std::vector<float> values(12, -9.0f);
  keyed_normal(kKey, std::span<float>(values).first(6));
  CHECK(std::all_of(values.begin() + 6, values.end(), [](float value) { return value == -9.0f; }));
}

TEST("keyed uniform: in [-1, 1), even, and of its name and seed") {
  std::vector<float> values(200'000), other(values.size());
  keyed_uniform(values, 42, "transformer_blocks.0.attn.to_q.lora_A");
  CHECK(kolmogorov_smirnov(values, [](double x) { return (x + 1) / 2; }) < 1.95);
  const auto [least, most] = std::minmax_element(values.begin(), values.end());
  CHECK(*least >= -1 && *most < 1 && *least < -0.9999f && *most > 0.9999f);
  for (const auto& [seed, name] :
       {std::pair<std::uint64_t, const char*>{43, "transformer_blocks.0.attn.to_q.lora_A"},
        {42, "transformer_blocks.1.attn.to_q.lora_A"}}) {
    keyed_uniform(other, seed, name);
    CHECK(std::abs(3 * correlation(values, other)) < 4);  // each has the variance 1/3
  }
  std::vector<float> shorter(777);
  keyed_uniform(shorter, 42, "transformer_blocks.0.attn.to_q.lora_A");
  CHECK(std::equal(shorter.begin(), shorter.end(), values.begin()));
}

TEST("keyed bits: half of them are set, in every place") {
  constexpr int kCount = 20000;
  std::array<int, 64> ones{};
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const std::uint64_t bits = keyed_bits(kKey, i);
    for (std::size_t place = 0; place < 64; ++place) ones[place] += static_cast<int>(bits >> place & 1);
  }
  for (const int count : ones) CHECK_NEAR(count, kCount / 2, 4.5 * std::sqrt(kCount / 4.0));
  CHECK(keyed_bits(kKey, 0) != keyed_bits(kKey, std::uint64_t{1} << 32));
}

// A run resumed by a later build must see the same noise, so these numbers may never change. A program in
// another language, in extended precision, gives them too.
TEST("keyed noise: the bits are frozen") {
  const std::vector<float> values = normals(kKey, 100'003);
  CHECK_EQ(values[0], 0x1.16a3dcp-2f);
  CHECK_EQ(values[1], -0x1.cac01cp-1f);
  CHECK_EQ(values[5], -0x1.08a25cp-2f);
  CHECK_EQ(frozen(values), 0x216b4d04u);
  CHECK_EQ(frozen(normals(NoiseKey{}, 100'003)), 0x72898b98u);
  std::vector<float> uniform(10'001);
  keyed_uniform(uniform, 42, "name");
  CHECK_EQ(frozen(uniform), 0xaa462d74u);
  CHECK_EQ(keyed_bits(kKey, 0), 0xcc0352b7a52203c4u);
  CHECK_EQ(keyed_bits(kKey, (std::uint64_t{1} << 33) + 5), 0xd85f5cdcd5defba0u);
}

}  // namespace
}  // namespace danceflux::test
