#include "io/pickled_tensor.h"

#include <algorithm>
#include <sstream>

namespace danceflux::io {
namespace {

constexpr std::uint64_t kExpandedBytes = std::uint64_t{1} << 20;

std::uint64_t element_bytes(const PickledStorage& storage) { return storage.format->bits / 8; }
std::uint64_t elements_in(const PickledStorage& storage) {
  return storage.data.size() / element_bytes(storage);
}

template <class... Parts>
std::string told(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Is the last element of the view inside? Every step is bounded by what is left, so that nothing can
// overflow.
bool stays_inside(std::uint64_t held, std::uint64_t offset, const Shape& shape, const Shape& strides) {
  if (offset >= held) return false;
  std::uint64_t left = held - 1 - offset;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const auto steps = static_cast<std::uint64_t>(shape[axis] - 1),
               stride = static_cast<std::uint64_t>(strides[axis]);
    if (stride == 0 || steps == 0) continue;
    if (steps > left / stride) return false;
    left -= steps * stride;
  }
  return true;
}

// The stride of a dimension that is never stepped along means nothing; row-major ones keep later products
// small.
Shape plain_strides(const Shape& shape, const Shape& strides) {
  const Shape contiguous = contiguous_strides(shape);
  const bool empty = shape.numel() == 0;
  Shape plain = strides;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (empty || shape[axis] == 1) plain[axis] = contiguous[axis];
  }
  return plain;
}

}  // namespace

std::string trouble_with_view(const PickledStorage& storage, std::int64_t offset, const Shape& shape,
                              const Shape& strides) {
  if (shape.rank() != strides.rank())
    return told("a stride for each dimension of ", shape, ", got ", strides);
  const bool negative =
      std::any_of(strides.begin(), strides.end(), [](std::int64_t stride) { return stride < 0; });
  if (negative) return told("strides of 0 or more, got ", strides);
  const auto elements = bounded_elements(shape);
  if (!elements) return told("dimensions of 0 or more with a product below 2^62, got ", shape);
  const std::uint64_t held = elements_in(storage);
  if (offset < 0 || static_cast<std::uint64_t>(offset) > held)
    return told("an offset within ", held, " elements, got ", offset);
  if (*elements == 0) return {};
  if (!stays_inside(held, static_cast<std::uint64_t>(offset), shape, strides)) {
    return told("a tensor within the ", held, " elements of its storage, got ", shape, " with strides ",
                strides, " from ", offset);
  }
  const std::uint64_t most = held + kExpandedBytes / element_bytes(storage);
  return *elements <= most ? ""
                           : told("at most ", most, " elements from a storage of ", held, ", got ", shape);
}

FileTensor view_storage(const PickledStorage& storage, std::int64_t offset, const Shape& shape,
                        const Shape& strides) {
  FileTensor tensor{.name = {},
                    .dtype_name = std::string(storage.format->name),
                    .shape = shape,
                    .strides = plain_strides(shape, strides)};
  tensor.data = reinterpret_cast<const std::byte*>(storage.data.data()) +
                static_cast<std::uint64_t>(offset) * element_bytes(storage);
  tensor.readable = storage.format->dtype.has_value();
  tensor.dtype = storage.format->dtype.value_or(DType::u8);
  return tensor;
}

}  // namespace danceflux::io
