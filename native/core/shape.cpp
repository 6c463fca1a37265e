#include "core/shape.h"

#include <algorithm>
#include <sstream>

#include "core/error.h"

namespace danceflux {

Shape::Shape(std::initializer_list<std::int64_t> dims) {
  for (std::int64_t dim : dims) push_back(dim);
}

void Shape::push_back(std::int64_t dim) {
  require(rank_ < kMaxRank, "ERR_SHAPE", "shape: expected at most ", kMaxRank, " dimensions");
  dims_[static_cast<std::size_t>(rank_++)] = dim;
}

void Shape::refuse_axis(int axis) const {
  fail("ERR_SHAPE", "shape: expected an axis within ", *this, ", got ", axis);
}

bool operator==(const Shape& a, const Shape& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

std::int64_t Shape::numel() const {
  std::int64_t count = 1;
  for (std::int64_t dim : *this) {
    require(dim >= 0, "ERR_SHAPE", "shape: expected dimensions of 0 or more, got ", *this);
    require(dim == 0 || count <= (std::int64_t{1} << 62) / dim, "ERR_SHAPE", "shape: ", *this,
            " is too large");
    count *= dim;
  }
  return count;
}

std::string Shape::string() const {
  std::ostringstream text;
  text << '[';
  for (int i = 0; i < rank_; ++i) text << (i ? ", " : "") << dims_[static_cast<std::size_t>(i)];
  text << ']';
  return text.str();
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << shape.string(); }

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  std::int64_t step = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= std::max<std::int64_t>(shape[axis], 1);
  }
  return strides;
}

Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b) {
  const int rank = std::max(a.rank(), b.rank());
  Shape result;
  for (int i = 0; i < rank; ++i) {
    const int from_end = i - rank;
    const std::int64_t left = -from_end <= a.rank() ? a[from_end] : 1;
    const std::int64_t right = -from_end <= b.rank() ? b[from_end] : 1;
    require(left == right || left == 1 || right == 1, "ERR_SHAPE", op,
            ": expected shapes that broadcast, got ", a, " and ", b);
    result.push_back(left == 1 ? right : left);
  }
  return result;
}

}  // namespace danceflux
