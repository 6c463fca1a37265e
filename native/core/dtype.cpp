#include "core/dtype.h"

#include <array>
#include <cstring>

#include "core/error.h"

namespace danceflux {
namespace {

struct DTypeRow {
  DType dtype;
  std::size_t size;
  std::string_view name;
  std::string_view file_name;
};

constexpr std::array<DTypeRow, 7> kDTypes{{{DType::f32, 4, "f32", "F32"},
                                           {DType::bf16, 2, "bf16", "BF16"},
                                           {DType::f16, 2, "f16", "F16"},
                                           {DType::f64, 8, "f64", "F64"},
                                           {DType::i32, 4, "i32", "I32"},
                                           {DType::i64, 8, "i64", "I64"},
                                           {DType::u8, 1, "u8", "U8"}}};

const DTypeRow& row(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)]; }

template <class T>
T read_at(const void* from, std::size_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(from) + i * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void write_at(void* to, std::size_t i, T value) {
  std::memcpy(static_cast<char*>(to) + i * sizeof(T), &value, sizeof(T));
}

double load_float(const void* from, DType dtype, std::size_t i) {
  switch (dtype) {
    case DType::f32:
      return read_at<float>(from, i);
    case DType::bf16:
      return bf16_to_f32(read_at<std::uint16_t>(from, i));
    case DType::f16:
      return f16_to_f32(read_at<std::uint16_t>(from, i));
    default:
      return read_at<double>(from, i);
  }
}

void store_float(void* to, DType dtype, std::size_t i, double value) {
  switch (dtype) {
    case DType::f32:
      return write_at(to, i, static_cast<float>(value));
    case DType::bf16:
      return write_at(to, i, f32_to_bf16(static_cast<float>(value)));
    case DType::f16:
      return write_at(to, i, f32_to_f16(static_cast<float>(value)));
    default:
      return write_at(to, i, value);
  }
}

}  // namespace

std::size_t size_of(DType dtype) { return row(dtype).size; }

std::string_view name_of(DType dtype) { return row(dtype).name; }

DType dtype_from_name(std::string_view name) {
  for (const DTypeRow& entry : kDTypes) {
    if (entry.name == name || entry.file_name == name) return entry.dtype;
  }
  fail("ERR_DTYPE", "dtype: expected one of f32, bf16, f16, f64, i32, i64, u8, got \"", name, "\"");
}

bool is_float(DType dtype) { return dtype <= DType::f64; }

float f16_to_f32(std::uint16_t bits) {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: the value is mantissa * 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

std::uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {  // below 2^-14: subnormal in f16; nearbyint rounds half to even
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(scaled)));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

void convert_elements(void* to, DType to_type, const void* from, DType from_type, std::size_t count) {
  if (to_type == from_type) {
    if (count) std::memcpy(to, from, count * size_of(to_type));
    return;
  }
  require(is_float(to_type) && is_float(from_type), "ERR_DTYPE", "convert: expected two float types, got ",
          name_of(from_type), " to ", name_of(to_type));
  if (from_type == DType::bf16 && to_type == DType::f32) {  // the common case of loading
    for (std::size_t i = 0; i < count; ++i) write_at(to, i, bf16_to_f32(read_at<std::uint16_t>(from, i)));
    return;
  }
  for (std::size_t i = 0; i < count; ++i) store_float(to, to_type, i, load_float(from, from_type, i));
}

}  // namespace danceflux
