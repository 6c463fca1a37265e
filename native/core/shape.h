// Dimensions of a tensor: at most eight, kept inline.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <string>

namespace danceflux {

inline constexpr int kMaxRank = 8;

/// A short list of 64-bit numbers: a shape, strides (in elements), or axes.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims);

  int rank() const { return rank_; }
  /// Negative positions count from the end. Throws ERR_SHAPE when out of range.
  std::int64_t operator[](int axis) const { return dims_[static_cast<std::size_t>(index(axis))]; }
  std::int64_t& operator[](int axis) { return dims_[static_cast<std::size_t>(index(axis))]; }
  void push_back(std::int64_t dim);
  /// `axis` as 0..rank-1. Throws ERR_SHAPE when out of range.
  int index(int axis) const {
    const int position = axis < 0 ? axis + rank_ : axis;
    if (position < 0 || position >= rank_) [[unlikely]]
      refuse_axis(axis);
    return position;
  }

  const std::int64_t* begin() const { return dims_.data(); }
  const std::int64_t* end() const { return dims_.data() + rank_; }
  friend bool operator==(const Shape& a, const Shape& b);

  /// Product of the dimensions (1 for rank 0). Throws ERR_SHAPE on a negative dimension or past 2^62.
  std::int64_t numel() const;
  /// "[2, 3, 4]"
  std::string string() const;

 private:
  [[noreturn]] void refuse_axis(int axis) const;
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape);
/// Row-major strides, in elements.
Shape contiguous_strides(const Shape& shape);
/// NumPy's rule. Throws ERR_SHAPE naming `op` when the two do not broadcast.
Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b);

}  // namespace danceflux
