#include "io/format_dtype.h"

#include <algorithm>
#include <iterator>

namespace danceflux::io {
namespace {

constexpr FormatDType kDTypes[] = {
    {"F64", 64, DType::f64},      {"F32", 32, DType::f32},      {"F16", 16, DType::f16},
    {"BF16", 16, DType::bf16},    {"I64", 64, DType::i64},      {"I32", 32, DType::i32},
    {"U8", 8, DType::u8},         {"I8", 8, std::nullopt},      {"BOOL", 8, std::nullopt},
    {"I16", 16, std::nullopt},    {"U16", 16, std::nullopt},    {"U32", 32, std::nullopt},
    {"U64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt}, {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt},
    {"C64", 64, std::nullopt},    {"F4", 4, std::nullopt}};

}  // namespace

const FormatDType* find_format_dtype(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const auto& row) { return row.name == name; });
  return found == std::end(kDTypes) ? nullptr : found;
}

std::string_view format_name(DType dtype) {
  return std::find_if(std::begin(kDTypes), std::end(kDTypes),
                      [&](const auto& row) { return row.dtype == dtype; })
      ->name;
}

std::optional<std::uint64_t> bounded_elements(const Shape& shape) {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  std::int64_t product = 1;
  bool empty = false;
  for (const std::int64_t dim : shape) {
    if (dim < 0 || (dim > 0 && product > kMost / dim)) return std::nullopt;
    product *= dim > 0 ? dim : 1;
    empty = empty || dim == 0;
  }
  return empty ? 0 : static_cast<std::uint64_t>(product);
}

}  // namespace danceflux::io
