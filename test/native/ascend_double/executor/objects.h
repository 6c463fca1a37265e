// The host objects of aclnn: tensors, scalars, arrays, lists.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "ascend_double/runtime/live.h"

using Dims = std::vector<std::int64_t>;

struct aclTensor {
  Dims shape, strides, storage_shape;
  std::int64_t offset = 0;
  aclDataType dtype = ACL_DT_UNDEFINED;
  aclFormat format = ACL_FORMAT_ND;
  void* data = nullptr;
  // Executors between their phase 1 and phase 2 that read this description.
  std::atomic<int> pending{0};
};
struct aclScalar {
  aclDataType dtype = ACL_DT_UNDEFINED;
  double real = 0;
  std::int64_t integer = 0;
};
struct aclIntArray {
  Dims values;
};
struct aclFloatArray {
  std::vector<float> values;
};
struct aclBoolArray {
  std::vector<bool> values;
};
struct aclTensorList {
  std::vector<aclTensor*> members;
};
struct aclScalarList {
  std::vector<aclScalar*> members;
};

namespace ascend_double {

Handles<aclTensor>& tensors();
Handles<aclScalar>& scalars();
Handles<aclIntArray>& int_arrays();
Handles<aclFloatArray>& float_arrays();
Handles<aclBoolArray>& bool_arrays();
Handles<aclTensorList>& tensor_lists();
Handles<aclScalarList>& scalar_lists();

/// Bytes of one element; 0 for a dtype that the double does not know.
std::size_t bytes_of(aclDataType dtype);
const char* name_of(aclDataType dtype);
std::int64_t count_of(const Dims& shape);
Dims contiguous_strides(const Dims& shape);
std::string text_of(const Dims& shape);

/// A set of dtypes.
class Types {
 public:
  constexpr Types(std::initializer_list<aclDataType> list) {
    for (const aclDataType type : list) bits_ |= std::uint64_t{1} << type;
  }
  constexpr bool has(aclDataType type) const { return type >= 0 && (bits_ >> type & 1); }
  constexpr Types operator|(Types other) const {
    other.bits_ |= bits_;
    return other;
  }
  std::string text() const;

 private:
  std::uint64_t bits_ = 0;
};

constexpr Types kFloats{ACL_FLOAT, ACL_FLOAT16, ACL_BF16};
constexpr Types kReals{ACL_FLOAT, ACL_FLOAT16, ACL_BF16, ACL_DOUBLE};
constexpr Types kIntegers{ACL_INT8, ACL_INT16, ACL_INT32, ACL_INT64, ACL_UINT8};
constexpr Types kNumbers = kReals | kIntegers;
constexpr Types kAll = kNumbers | Types{ACL_BOOL};
constexpr Types kIndices{ACL_INT32, ACL_INT64};

}  // namespace ascend_double
