// Measures of tensors and of pairs: against plain loops, in files, and whatever the number of threads.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "align/measure.h"
#include "align/measure_together.h"
#include "harness.h"
#include "temporary.h"

namespace danceflux::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Numbers of many sizes; `odd`: with NaN and infinities among them.
std::vector<float> mixed(std::size_t count, unsigned seed, bool odd) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    const int exponent = static_cast<int>(random() % 20) - 10;
    value = std::ldexp(static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 1000, exponent);
    if (odd && random() % 97 == 0) value = random() % 2 ? kNaN : (random() % 2 ? kInfinity : -kInfinity);
  }
  return values;
}

/// The same, each moved by some units in the last place, a few by much.
std::vector<float> moved(const std::vector<float>& from, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values = from;
  for (float& value : values) {
    const auto kind = random() % 8;
    auto bits = std::bit_cast<std::int32_t>(value);
    if (kind > 2) bits += static_cast<std::int32_t>(random() % (1u << (3 * (kind - 2)))) - 4;
    if (kind == 7 && random() % 50 == 0) bits ^= static_cast<std::int32_t>(0x80000000u);
    value = std::bit_cast<float>(bits);
  }
  return values;
}

std::int64_t ordered(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::int64_t size = bits & 0x7fffffffu;
  return bits >> 31 ? -size : size;
}

std::size_t bucket_of(float a, float b) {
  if (!std::isfinite(a) || !std::isfinite(b))
    return a == b || (std::isnan(a) && std::isnan(b)) ? 0 : align::kUlpBuckets - 1;
  const std::int64_t distance = std::abs(ordered(a) - ordered(b));
  std::size_t bucket = 0;
  for (std::int64_t most = 0; distance > most; most = most == 0 ? 1 : 2 * most) ++bucket;
  return std::min<std::size_t>(bucket, align::kUlpBuckets - 2);
}

align::PairMeasure plainly(const std::vector<float>& a, const std::vector<float>& b) {
  align::PairMeasure pair;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ++pair.count;
    ++pair.ulps[bucket_of(a[i], b[i])];
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) {
      ++(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])) ? pair.equal : pair.odd);
      continue;
    }
    const double x = a[i], y = b[i];
    const float size = std::fabs(a[i] - b[i]), scale = std::fabs(b[i]);
    ++pair.finite;
    pair.equal += a[i] == b[i];
    pair.dot += x * y;
    pair.squares_a += x * x;
    pair.squares_b += y * y;
    pair.squared_distance += (x - y) * (x - y);
    pair.within_one += size <= 0.001f * scale;
    pair.within_five += size <= 0.005f * scale;
    const float share = size / (scale > 0 ? scale : 2.220446e-16f);
    pair.max_relative = std::max<double>(pair.max_relative, share);
    if (size > pair.max_absolute) {
      pair.max_absolute = size;
      pair.worst = i;
    }
  }
  return pair;
}

void check_same(const align::PairMeasure& pair, const align::PairMeasure& right) {
  CHECK_EQ(pair.count, right.count);
  CHECK_EQ(pair.finite, right.finite);
  CHECK_EQ(pair.equal, right.equal);
  CHECK_EQ(pair.odd, right.odd);
  CHECK_EQ(pair.within_one, right.within_one);
  CHECK_EQ(pair.within_five, right.within_five);
  CHECK_EQ(pair.worst, right.worst);
  CHECK_EQ(pair.max_absolute, right.max_absolute);
  CHECK_EQ(pair.max_relative, right.max_relative);
  CHECK(pair.ulps == right.ulps);
  CHECK_NEAR(pair.dot / right.squares_b, right.dot / right.squares_b, 1e-12);
  CHECK_NEAR(pair.squares_a / right.squares_a, 1.0, 1e-12);
  CHECK_NEAR(pair.squares_b / right.squares_b, 1.0, 1e-12);
  CHECK_NEAR(pair.squared_distance / right.squared_distance, 1.0, 1e-12);
}

void write(const std::string& path, const std::vector<std::byte>& bytes) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  CHECK(file != nullptr && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
  std::fclose(file);
}

template <class Number>
std::vector<std::byte> after(std::size_t offset, const std::vector<Number>& values) {
  std::vector<std::byte> bytes(offset + values.size() * sizeof(Number));
  std::memcpy(bytes.data() + offset, values.data(), values.size() * sizeof(Number));
  return bytes;
}

TEST("measure: a pair's numbers are those of a plain loop, at any length") {
  for (const std::size_t count : {1u, 15u, 16u, 17u, 63u, 64u, 65u, 1023u, 1024u, 1025u, 5000u, 40000u}) {
    for (const bool odd : {false, true}) {
      const std::vector<float> a = mixed(count, static_cast<unsigned>(count), odd), b = moved(a, 7);
      align::PairMeasure pair;
      pair.add(a.data(), DType::f32, b.data(), DType::f32, count);
      if (count > 1000) check_same(pair, plainly(a, b));
      CHECK(pair.ulps == plainly(a, b).ulps);
      CHECK_EQ(pair.equal, plainly(a, b).equal);
      CHECK_EQ(pair.within_one, plainly(a, b).within_one);
    }
  }
}

TEST("measure: distances in the last place of narrow numbers") {
  const std::vector<float> wide = mixed(3000, 5, true);
  for (const DType dtype : {DType::bf16, DType::f16}) {
    std::vector<std::uint16_t> a(wide.size()), b(wide.size());
    convert_elements(a.data(), dtype, wide.data(), DType::f32, wide.size());
    for (std::size_t i = 0; i < b.size(); ++i)
      b[i] = static_cast<std::uint16_t>(std::isfinite(wide[i]) ? a[i] + (a[i] & 0x7fff ? i % 3 : 0) : a[i]);
    align::PairMeasure pair;
    pair.add(a.data(), dtype, b.data(), dtype, a.size());
    std::array<std::uint64_t, 3> right{};
    for (std::size_t i = 0; i < a.size(); ++i) ++right[static_cast<std::size_t>(b[i] - a[i])];
    for (std::size_t k = 0; k < 3; ++k) CHECK_EQ(pair.ulps[k], right[k]);
  }
}

TEST("measure: a pair in files, and in memory on several threads, gives the same bits as in parts") {
  const TemporaryFolder folder;
  const std::size_t count = 3 * align::kPart + 12345;
  const std::vector<float> a = mixed(count, 1, true), b = moved(a, 2);
  write(folder.path() + "/a", after(16, a));
  write(folder.path() + "/b", after(1040, b));
  align::PairMeasure parts, together;
  for (std::size_t start = 0; start < count; start += align::kPart) {
    align::PairMeasure part;
    part.add(a.data() + start, DType::f32, b.data() + start, DType::f32,
             std::min(align::kPart, count - start));
    parts.add(part);
  }
  align::add_together(together, a.data(), DType::f32, b.data(), DType::f32, count);
  const align::StoredElements left{folder.path() + "/a", 16, DType::f32},
      right{folder.path() + "/b", 1040, DType::f32};
  for (const align::PairMeasure& pair : {together, align::measure_stored(left, right, count)}) {
    CHECK_EQ(pair.dot, parts.dot);
    CHECK_EQ(pair.squared_distance, parts.squared_distance);
    CHECK_EQ(pair.worst, parts.worst);
    CHECK(pair.ulps == parts.ulps);
  }
  check_same(parts, plainly(a, b));
}

TEST("measure: files of unequal types; one that is cut off or missing is refused") {
  const TemporaryFolder folder;
  const std::vector<float> a = mixed(70000, 3, false);
  std::vector<std::uint16_t> b(a.size());
  convert_elements(b.data(), DType::bf16, a.data(), DType::f32, a.size());
  write(folder.path() + "/a", after(0, a));
  write(folder.path() + "/b", after(0, b));
  const align::StoredElements left{folder.path() + "/a", 0, DType::f32},
      right{folder.path() + "/b", 0, DType::bf16};
  const align::PairMeasure pair = align::measure_stored(left, right, a.size());
  CHECK_EQ(pair.finite, a.size());
  CHECK(pair.max_relative > 0.001 && pair.max_relative <= 1.0 / 256);
  CHECK_EQ(pair.ulps[0], 0u);
  CHECK_THROWS("ERR_FILE", align::measure_stored(left, right, a.size() + 1));
  CHECK_THROWS("ERR_FILE", align::measure_stored({folder.path() + "/c", 0, DType::f32}, right, 1));
}

TEST("measure: statistics are those of a plain loop, odd ones aside") {
  for (const std::size_t count : {5u, 1000u, 1024u, 3333u}) {
    const std::vector<float> values = mixed(count, static_cast<unsigned>(count), count > 5);
    align::Measure measure;
    measure.add(values.data(), DType::f32, count);
    double sum = 0, squares = 0;
    float low = kInfinity, high = -kInfinity;
    std::uint64_t nan = 0, inf = 0;
    for (const float value : values) {
      nan += std::isnan(value);
      inf += std::isinf(value);
      if (!std::isfinite(value)) continue;
      sum += value;
      squares += static_cast<double>(value) * value;
      low = std::min(low, value);
      high = std::max(high, value);
    }
    CHECK_EQ(measure.nan, nan);
    CHECK_EQ(measure.inf, inf);
    CHECK_EQ(measure.min, static_cast<double>(low));
    CHECK_EQ(measure.max, static_cast<double>(high));
    CHECK_NEAR(measure.squares / squares, 1.0, 1e-12);
    CHECK_NEAR(measure.sum, sum, 1e-9 * std::sqrt(squares * static_cast<double>(count)));
  }
}

TEST("measure: checksums by folding are those of a bit-by-bit one, in pieces too") {
  const std::vector<float> values = mixed(2000, 9, false);
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (const std::size_t count : {0u, 1u, 9u, 63u, 64u, 65u, 79u, 80u, 127u, 128u, 200u, 1000u, 7999u}) {
    std::uint32_t slow = 0xffffffffu;
    for (std::size_t i = 3; i < 3 + std::min<std::size_t>(count, 7990); ++i) {
      slow ^= bytes[i];
      for (int bit = 0; bit < 8; ++bit) slow = (slow >> 1) ^ (slow & 1 ? 0xedb88320u : 0u);
    }
    const std::size_t all = std::min<std::size_t>(count, 7990), half = all / 3;
    CHECK_EQ(align::crc32(0, bytes + 3, all), ~slow);
    CHECK_EQ(align::crc32(align::crc32(0, bytes + 3, half), bytes + 3 + half, all - half), ~slow);
  }
}

}  // namespace
}  // namespace danceflux::test
