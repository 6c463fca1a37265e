// bf16 and f16, rounded to nearest even. Written here again, on purpose: the double takes nothing from what
// it tests.
#pragma once
#include <cstdint>
#include <cstring>

namespace ascend_double {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct BFloat {
  std::uint16_t bits = 0;
  BFloat() = default;
  explicit BFloat(float value) {
    const std::uint32_t wide = bits_of(value);
    if ((wide & 0x7fffffff) > 0x7f800000)
      bits = static_cast<std::uint16_t>(wide >> 16 | 0x40);
    else
      bits = static_cast<std::uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  explicit operator float() const { return float_of(static_cast<std::uint32_t>(bits) << 16); }
};

struct Half {
  std::uint16_t bits = 0;
  Half() = default;
  explicit Half(float value) {
    const std::uint32_t wide = bits_of(value), magnitude = wide & 0x7fffffff;
    const std::uint16_t sign = static_cast<std::uint16_t>(wide >> 16 & 0x8000);
    if (magnitude > 0x7f800000)
      bits = sign | 0x7e00;
    else if (magnitude >= 0x477ff000)  // 65520 and above round to infinity
      bits = sign | 0x7c00;
    else if (magnitude < 0x38800000)  // below the smallest normal: adding 0.5 lets the adder round
      bits = static_cast<std::uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
    else
      bits =
          static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
  }
  explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | rest << 13);
    if (rest >= 0x0400) return float_of(sign | ((rest << 13) + 0x38000000));
    return float_of(sign | bits_of(static_cast<float>(rest) * 0x1p-24f));
  }
};

/// A BOOL in memory, which may hold any byte.
struct Truth {
  std::uint8_t byte = 0;
  Truth() = default;
  explicit Truth(float value) : byte(value != 0) {}
  explicit operator float() const { return byte != 0; }
};

}  // namespace ascend_double
