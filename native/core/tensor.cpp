#include "core/tensor.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include "core/error.h"

namespace danceflux {
namespace {

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> counter{0};
  return counter.fetch_add(1, std::memory_order_relaxed) + 1;
}

Shape with_inferred_dim(const Shape& shape, std::int64_t numel) {
  Shape full = shape;
  int inferred = -1;
  std::int64_t known = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] == -1) {
      require(inferred < 0, "ERR_SHAPE", "view: expected at most one -1, got ", shape);
      inferred = axis;
    } else {
      known *= shape[axis];
    }
  }
  if (inferred >= 0 && known > 0) full[inferred] = numel / known;
  return full;
}

// Walks old and new dimensions together: a run of new dimensions may only be cut from a run of old ones that
// lie in memory as one. Empty when they do not.
std::optional<Shape> strides_for_view(const Shape& old_shape, const Shape& old_strides, const Shape& shape) {
  if (old_shape.numel() == 0) return contiguous_strides(shape);
  Shape strides = shape;
  int target = shape.rank() - 1;
  std::int64_t chunk = 1, taken = 1, base = 1;
  bool fresh = true;
  for (int axis = old_shape.rank() - 1; axis >= 0; --axis) {
    if (old_shape[axis] == 1) continue;
    if (fresh) base = old_strides[axis], fresh = false, chunk = 1, taken = 1;
    chunk *= old_shape[axis];
    int outer = axis - 1;
    while (outer >= 0 && old_shape[outer] == 1) --outer;
    if (outer >= 0 && old_strides[outer] == chunk * base) continue;
    while (target >= 0 && (taken < chunk || shape[target] == 1)) {
      strides[target] = taken * base;
      taken *= shape[target--];
    }
    if (taken != chunk) return std::nullopt;
    fresh = true;
  }
  for (; target >= 0; --target) {
    if (shape[target] != 1) return std::nullopt;
    strides[target] = 1;
  }
  return strides;
}

}  // namespace

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape)
    : Tensor(std::move(storage), dtype, shape, contiguous_strides(shape), 0) {}

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape, const Shape& strides,
               std::int64_t offset)
    : storage_(std::move(storage)),
      shape_(shape),
      strides_(strides),
      offset_(offset),
      numel_(shape.numel()),
      id_(next_id()),
      dtype_(dtype) {}

bool Tensor::is_contiguous() const {
  std::int64_t step = 1;
  for (int axis = rank() - 1; axis >= 0; --axis) {
    if (shape_[axis] != 1 && strides_[axis] != step) return numel_ == 0;
    step *= shape_[axis];
  }
  return true;
}

void* Tensor::address() const {
  if (!storage_) return nullptr;
  return static_cast<char*>(storage_->address()) + offset_ * static_cast<std::int64_t>(size_of(dtype_));
}

bool Tensor::can_view(const Shape& shape) const {
  const Shape full = with_inferred_dim(shape, numel_);
  return full.numel() == numel_ && strides_for_view(shape_, strides_, full).has_value();
}

Tensor Tensor::view(const Shape& shape) const {
  const Shape full = with_inferred_dim(shape, numel_);
  require(full.numel() == numel_, "ERR_SHAPE", "view: expected ", numel_, " elements of ", shape_, ", got ",
          shape);
  const auto strides = strides_for_view(shape_, strides_, full);
  require(strides.has_value(), "ERR_SHAPE", "view: the strides ", strides_, " of ", shape_, " do not allow ",
          full, " without a copy");
  return Tensor(storage_, dtype_, full, *strides, offset_);
}

Tensor Tensor::permute(const Shape& order) const {
  require(order.rank() == rank(), "ERR_SHAPE", "permute: expected ", rank(), " axes, got ", order);
  Shape shape, strides;
  unsigned seen = 0;
  for (std::int64_t entry : order) {
    const int axis = shape_.index(static_cast<int>(entry));
    require(!(seen & (1u << axis)), "ERR_SHAPE", "permute: axis ", entry, " twice in ", order);
    seen |= 1u << axis;
    shape.push_back(shape_[axis]);
    strides.push_back(strides_[axis]);
  }
  return Tensor(storage_, dtype_, shape, strides, offset_);
}

Tensor Tensor::transpose(int axis_a, int axis_b) const {
  const int a = shape_.index(axis_a), b = shape_.index(axis_b);
  Shape shape = shape_, strides = strides_;
  std::swap(shape[a], shape[b]);
  std::swap(strides[a], strides[b]);
  return Tensor(storage_, dtype_, shape, strides, offset_);
}

Tensor Tensor::narrow(int axis, std::int64_t start, std::int64_t length) const {
  const int at = shape_.index(axis);
  require(start >= 0 && length >= 0 && start <= shape_[at] - length, "ERR_SHAPE",
          "narrow: expected a range within axis ", at, " of ", shape_, ", got ", start, " + ", length);
  Shape shape = shape_;
  shape[at] = length;
  return Tensor(storage_, dtype_, shape, strides_, offset_ + start * strides_[at]);
}

Tensor Tensor::expand(const Shape& shape) const {
  require(shape.rank() >= rank(), "ERR_SHAPE", "expand: expected at least rank ", rank(), ", got ", shape);
  Shape strides = shape;
  for (int i = 1; i <= shape.rank(); ++i) {
    const std::int64_t from = i <= rank() ? shape_[-i] : 1;
    require(from == shape[-i] || from == 1, "ERR_SHAPE", "expand: expected a shape that ", shape_,
            " broadcasts to, got ", shape);
    strides[-i] = i <= rank() && from == shape[-i] ? strides_[-i] : 0;
  }
  return Tensor(storage_, dtype_, shape, strides, offset_);
}

Tensor Tensor::detach() const { return Tensor(storage_, dtype_, shape_, strides_, offset_); }

}  // namespace danceflux
