// Tensors as plain arrays: views are gathered into contiguous memory of the type that is computed in, and
// results are scattered and rounded back. Arithmetic in f16 and bf16 is arithmetic in f32 with rounding at
// the ends, as on the device.
#pragma once
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>

#include "ascend_double/executor/plan.h"
#include "ascend_double/ops/half.h"

namespace ascend_double {

/// Calls visit(Stored{}) with the C++ type of a dtype.
template <class Visit>
void with_type(aclDataType dtype, Visit&& visit) {
  switch (dtype) {
    case ACL_FLOAT:
      return visit(float{});
    case ACL_FLOAT16:
      return visit(Half{});
    case ACL_BF16:
      return visit(BFloat{});
    case ACL_DOUBLE:
      return visit(double{});
    case ACL_INT8:
      return visit(std::int8_t{});
    case ACL_INT16:
      return visit(std::int16_t{});
    case ACL_INT32:
      return visit(std::int32_t{});
    case ACL_INT64:
      return visit(std::int64_t{});
    case ACL_UINT8:
      return visit(std::uint8_t{});
    case ACL_BOOL:
      return visit(Truth{});
    default:
      refuse(ACLNN_ERR_INNER_FIND_KERNEL, "no kernel for %s", name_of(dtype));
  }
}

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (std::is_class_v<From>)
    return convert<To>(static_cast<float>(value));
  else if constexpr (std::is_class_v<To>)
    return To(static_cast<float>(value));
  else if constexpr (std::is_integral_v<To> && std::is_floating_point_v<From>) {
    if (value != value) return 0;
    if (value <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
    if (value >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
    return static_cast<To>(value);
  } else
    return static_cast<To>(value);
}

/// Splits [0, count) over the double's threads (ASCEND_DOUBLE_THREADS); every index is computed by itself.
void parallel(std::int64_t count, std::int64_t grain,
              const std::function<void(std::int64_t, std::int64_t)>& body);

/// Calls visit(first index, offset, length, stride) for each innermost run of a view; runs are as long as
/// they can be.
void each_run(const Dims& shape, const Dims& strides,
              const std::function<void(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>& visit);

/// Contiguous values of one view. May lie on the tensor's own storage.
template <class Value>
class Dense {
 public:
  explicit Dense(std::int64_t count)
      : own_(new Value[static_cast<std::size_t>(count)]), values_(own_.get()), count_(count) {}
  Dense(const Value* values, std::int64_t count) : values_(const_cast<Value*>(values)), count_(count) {}
  const Value* data() const { return values_; }
  Value* data() { return values_; }
  std::int64_t count() const { return count_; }
  const Value& operator[](std::int64_t i) const { return values_[i]; }
  Value& operator[](std::int64_t i) { return values_[i]; }

 private:
  std::unique_ptr<Value[]> own_;
  Value* values_;
  std::int64_t count_;
};

template <class Value>
Dense<Value> load(const Launch& launch, const Operand& from, const Dims& shape, const Dims& strides) {
  const std::int64_t count = count_of(shape);
  if (count == 0) return Dense<Value>(0);
  const char* base = launch.at[static_cast<std::size_t>(from.slot)];
  // Read in place only where nothing is converted or moved.
  if constexpr (std::is_same_v<Value, float>)
    if (from.dtype == ACL_FLOAT && strides == contiguous_strides(shape))
      return Dense<Value>(reinterpret_cast<const float*>(base), count);
  Dense<Value> to(count);
  with_type(from.dtype, [&](auto type) {
    using Stored = decltype(type);
    const Stored* values = reinterpret_cast<const Stored*>(base);
    each_run(shape, strides,
             [&](std::int64_t first, std::int64_t offset, std::int64_t length, std::int64_t stride) {
               Value* out = to.data() + first;
               const Stored* in = values + offset;
               if (stride == 1)
                 for (std::int64_t i = 0; i < length; ++i) out[i] = convert<Value>(in[i]);
               else
                 for (std::int64_t i = 0; i < length; ++i) out[i] = convert<Value>(in[i * stride]);
             });
  });
  return to;
}

template <class Value>
Dense<Value> load(const Launch& launch, const Operand& from) {
  return load<Value>(launch, from, from.shape, from.strides);
}

/// Empty for an optional tensor that was not given.
inline Dense<float> load_optional(const Launch& launch, const Operand& from) {
  return from ? load<float>(launch, from) : Dense<float>(nullptr, 0);
}

/// Strides that read a view as one of a wider shape (numpy's broadcasting).
Dims broadcast_strides(const Operand& from, const Dims& shape);

template <class Value>
Dense<Value> load_broadcast(const Launch& launch, const Operand& from, const Dims& shape) {
  return load<Value>(launch, from, shape, broadcast_strides(from, shape));
}

template <class Value>
void store(const Launch& launch, const Operand& to, const Value* values) {
  if (!to || to.count() == 0) return;
  with_type(to.dtype, [&](auto type) {
    using Stored = decltype(type);
    Stored* base = reinterpret_cast<Stored*>(launch.at[static_cast<std::size_t>(to.slot)]);
    each_run(to.shape, to.strides,
             [&](std::int64_t first, std::int64_t offset, std::int64_t length, std::int64_t stride) {
               for (std::int64_t i = 0; i < length; ++i)
                 base[offset + i * stride] = convert<Stored>(values[first + i]);
             });
  });
}

template <class Value>
void store(const Launch& launch, const Operand& to, const Dense<Value>& values) {
  store(launch, to, values.data());
}

/// What a value becomes when it is written in a dtype and read back.
float rounded(float value, aclDataType dtype);

/// numpy's broadcast of several shapes; refuses with 161002.
Dims broadcast(Plan& plan, const std::vector<Operand>& operands);

/// Pairwise f32 sum in a fixed order; with a `start` one after the other from there on, for reductions that
/// nobody asked to be deterministic.
float sum(const float* values, std::int64_t count, std::int64_t start = 0);

}  // namespace ascend_double
