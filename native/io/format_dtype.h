// The element types of safetensors, whose names stand for those of PyTorch too.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/dtype.h"
#include "core/shape.h"

namespace danceflux::io {

struct FormatDType {
  std::string_view name;
  std::size_t bits;
  std::optional<DType> dtype;  // none: known, but not read here
};

/// Null when the format has no such type.
const FormatDType* find_format_dtype(std::string_view name);
/// How the format spells `dtype`.
std::string_view format_name(DType dtype);

/// Elements of `shape`; none when a dimension is negative or when the product of the dimensions other than 0
/// passes 2^62, so that strides can be computed of whatever is let through.
std::optional<std::uint64_t> bounded_elements(const Shape& shape);

}  // namespace danceflux::io
