// Element types and the exact scalar conversions between them.
#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace danceflux {

enum class DType : std::uint8_t { f32, bf16, f16, f64, i32, i64, u8 };

/// Bytes of one element.
std::size_t size_of(DType dtype);
/// "f32", "bf16", ...
std::string_view name_of(DType dtype);
/// Inverse of name_of; also reads safetensors spellings ("F32", "BF16", ...). Throws ERR_DTYPE.
DType dtype_from_name(std::string_view name);
/// f32, bf16, f16 or f64.
bool is_float(DType dtype);

inline float bf16_to_f32(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

/// Round to nearest even; NaN stays a quiet NaN.
inline std::uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float f16_to_f32(std::uint16_t bits);
/// Round to nearest even; overflow becomes infinity, as IEEE says.
std::uint16_t f32_to_f16(float value);

/// Converts `count` elements between float types on the host (bf16/f16/f64 <-> f32 and each other, through
/// f32 or f64). Integer types convert only to themselves. Throws ERR_DTYPE otherwise.
void convert_elements(void* to, DType to_type, const void* from, DType from_type, std::size_t count);

}  // namespace danceflux
