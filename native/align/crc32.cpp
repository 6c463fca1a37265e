// CRC-32 as zip and PNG have it: by carry-less products where the processor has them, otherwise by tables.
#include <array>
#include <cstring>

#include "align/measure.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define DANCEFLUX_FOLDS 1
#endif

namespace danceflux::align {
namespace {

constexpr std::uint32_t kPolynomial = 0xedb88320u;  // lowest power in the highest bit

/// `value` times x, modulo the polynomial.
constexpr std::uint32_t times_x(std::uint32_t value) { return (value >> 1) ^ (value & 1 ? kPolynomial : 0u); }

// ---- eight bytes at a time ------------------------------------------------------------------------------

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = times_x(value);
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

constexpr Tables kTables = make_tables();

/// `value` is the inverted checksum so far.
std::uint32_t by_tables(std::uint32_t value, const unsigned char* at, std::size_t count) {
  for (; count >= 8; at += 8, count -= 8) {
    std::uint32_t low = 0, high = 0;
    std::memcpy(&low, at, 4);
    std::memcpy(&high, at + 4, 4);
    low ^= value;
    value = kTables[7][low & 255] ^ kTables[6][low >> 8 & 255] ^ kTables[5][low >> 16 & 255] ^
            kTables[4][low >> 24] ^ kTables[3][high & 255] ^ kTables[2][high >> 8 & 255] ^
            kTables[1][high >> 16 & 255] ^ kTables[0][high >> 24];
  }
  for (; count > 0; ++at, --count) value = kTables[0][(value ^ *at) & 255] ^ (value >> 8);
  return value;
}

#ifdef DANCEFLUX_FOLDS

// ---- by folding -----------------------------------------------------------------------------------------
//
// Sixteen bytes that stand D bits before others may be replaced by their product with x^D, added to those:
// the remainder stays the same. What is left of a long message are sixteen bytes, for the tables.
// (V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", 2009.)

constexpr std::size_t kWidth = 16, kFolded = 4 * kWidth;

/// x^n modulo the polynomial, as the product of two reflected numbers needs it.
constexpr std::int64_t power(int n) {
  std::uint32_t value = 0x80000000u;
  for (int i = 0; i < n; ++i) value = times_x(value);
  return static_cast<std::int64_t>(value) << 1;
}

constexpr std::int64_t kFarLow = power(8 * kFolded + 32), kFarHigh = power(8 * kFolded - 32);
constexpr std::int64_t kNearLow = power(8 * kWidth + 32), kNearHigh = power(8 * kWidth - 32);

__attribute__((target("pclmul,sse4.1"))) inline __m128i load(const unsigned char* at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
}

__attribute__((target("pclmul,sse4.1"))) inline __m128i fold(__m128i value, __m128i powers, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(value, powers, 0x00),
                high = _mm_clmulepi64_si128(value, powers, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/// `count` is at least kFolded; what is left over after whole widths is for the tables.
__attribute__((target("pclmul,sse4.1"))) std::uint32_t by_folding(std::uint32_t value,
                                                                  const unsigned char* at,
                                                                  std::size_t count) {
  __m128i parts[4];
  for (int i = 0; i < 4; ++i) parts[i] = load(at + kWidth * static_cast<std::size_t>(i));
  parts[0] = _mm_xor_si128(parts[0], _mm_cvtsi32_si128(static_cast<int>(value)));
  at += kFolded;
  count -= kFolded;
  const __m128i far = _mm_set_epi64x(kFarHigh, kFarLow);
  for (; count >= kFolded; at += kFolded, count -= kFolded) {
    for (int i = 0; i < 4; ++i)
      parts[i] = fold(parts[i], far, load(at + kWidth * static_cast<std::size_t>(i)));
  }
  const __m128i near = _mm_set_epi64x(kNearHigh, kNearLow);
  __m128i whole = parts[0];
  for (int i = 1; i < 4; ++i) whole = fold(whole, near, parts[i]);
  for (; count >= kWidth; at += kWidth, count -= kWidth) whole = fold(whole, near, load(at));
  unsigned char rest[kWidth];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), whole);
  return by_tables(by_tables(0, rest, kWidth), at, count);
}

bool can_fold() {
  static const bool can = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  return can;
}

#endif

}  // namespace

std::uint32_t crc32(std::uint32_t crc, const void* bytes, std::size_t count) {
  const auto* at = static_cast<const unsigned char*>(bytes);
#ifdef DANCEFLUX_FOLDS
  if (count >= kFolded && can_fold()) return ~by_folding(~crc, at, count);
#endif
  return ~by_tables(~crc, at, count);
}

}  // namespace danceflux::align
