// What every op does first: refuse, in one line, what the device must not see.
#pragma once
#include "autograd/observer.h"
#include "autograd/tape.h"
#include "backend/backend.h"
#include "core/cancel.h"
#include "core/error.h"
#include "core/tensor.h"

namespace danceflux::ops {

/// The first line of every op: a stopped job goes no further. Returns the device of `x`.
inline Backend& enter(const char* op, const Tensor& x) {
  throw_if_cancelled();
  require(x.defined(), "ERR_SHAPE", op, ": expected a tensor, got none");
  return backend_of(x);
}

/// Would a node be left for these inputs? Ops ask before they save anything for backward.
template <class... Tensors>
bool tracked(const Tensors&... inputs) {
  return (wants_gradient(inputs) || ...);
}

/// The dtype of gradients (and of results) that belong to `x`: stored weights take part in f32 on the CPU.
inline DType compute_dtype(Backend& device, const Tensor& x) { return device.activation_dtype(x.dtype()); }

inline void check_activation(const char* op, const Tensor& x) {
  if (is_float(x.dtype()) && compute_dtype(backend_of(x), x) == x.dtype()) [[likely]]
    return;
  fail("ERR_DTYPE", op, ": expected activations that ", backend_of(x).name(), " computes in, got ",
       name_of(x.dtype()), " of shape ", x.shape());
}

inline void check_stored(const char* op, const char* what, const Tensor& x) {
  require(is_float(x.dtype()) && x.dtype() != DType::f64, "ERR_DTYPE", op, ": expected ", what,
          " in f32, bf16 or f16, got ", name_of(x.dtype()));
}

inline void check_same_device(const char* op, const Tensor& x, const Tensor& other) {
  if (other.storage() && &x.device() == &other.device()) [[likely]]
    return;
  require(other.defined(), "ERR_SHAPE", op, ": expected a tensor, got none");
  fail("ERR_DEVICE", op, ": expected tensors of one device, got ", backend_of(x).name(), " and ",
       backend_of(other).name());
}

inline void check_same_dtype(const char* op, const Tensor& x, const Tensor& other) {
  if (x.dtype() == other.dtype()) [[likely]]
    return;
  fail("ERR_DTYPE", op, ": expected one dtype, got ", name_of(x.dtype()), " and ", name_of(other.dtype()));
}

inline void check_shape(const char* op, const char* what, const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) [[likely]]
    return;
  fail("ERR_SHAPE", op, ": expected ", what, " of shape ", shape, ", got ", x.shape());
}

inline void check_rank(const char* op, const char* what, const Tensor& x, int rank) {
  if (x.rank() == rank) [[likely]]
    return;
  fail("ERR_SHAPE", op, ": expected ", what, " of rank ", rank, ", got ", x.shape());
}

/// A vector of weights beside `x`, which may be absent: f32, contiguous, of `size` elements.
inline void check_vector(const char* op, const char* what, const Tensor& x, const Tensor& vector,
                         std::int64_t size) {
  if (!vector) return;
  check_same_device(op, x, vector);
  check_shape(op, what, vector, {size});
  require(vector.dtype() == DType::f32, "ERR_DTYPE", op, ": expected ", what, " in f32, got ",
          name_of(vector.dtype()));
}

/// A second activation beside `x`.
inline void check_beside(const char* op, const Tensor& x, const Tensor& other) {
  check_same_device(op, x, other);
  check_same_dtype(op, x, other);
}

/// Memory of the same shape and dtype as `x`, which an op fills at once.
inline Tensor like(const Tensor& x) { return backend_of(x).empty(x.shape(), x.dtype()); }

/// A device that keeps activations in 16 bits gives vectors and reductions back in f32: this brings a
/// gradient to its input's dtype.
Tensor as_dtype(const Tensor& x, DType dtype);
/// `x` in row-major order, never recorded: for what a gradient function or a shortcut wants contiguous.
Tensor packed(const Tensor& x);

}  // namespace danceflux::ops
