#include "ascend_double/executor/objects.h"

#include <cstring>

#include "ascend_double/ops/half.h"

namespace ascend_double {

template <class Object>
static Handles<Object>& handles(const char* kind) {
  static auto& all = *new Handles<Object>(kind);
  return all;
}
Handles<aclTensor>& tensors() { return handles<aclTensor>("tensor"); }
Handles<aclScalar>& scalars() { return handles<aclScalar>("scalar"); }
Handles<aclIntArray>& int_arrays() { return handles<aclIntArray>("array"); }
Handles<aclFloatArray>& float_arrays() { return handles<aclFloatArray>("array"); }
Handles<aclBoolArray>& bool_arrays() { return handles<aclBoolArray>("array"); }
Handles<aclTensorList>& tensor_lists() { return handles<aclTensorList>("list"); }
Handles<aclScalarList>& scalar_lists() { return handles<aclScalarList>("list"); }

namespace {

struct TypeRow {
  aclDataType type;
  std::size_t bytes;
  const char* name;
};
constexpr TypeRow kTypes[] = {
    {ACL_FLOAT, 4, "FLOAT"},   {ACL_FLOAT16, 2, "FLOAT16"}, {ACL_BF16, 2, "BF16"},
    {ACL_DOUBLE, 8, "DOUBLE"}, {ACL_INT8, 1, "INT8"},       {ACL_INT16, 2, "INT16"},
    {ACL_INT32, 4, "INT32"},   {ACL_INT64, 8, "INT64"},     {ACL_UINT8, 1, "UINT8"},
    {ACL_UINT16, 2, "UINT16"}, {ACL_UINT32, 4, "UINT32"},   {ACL_UINT64, 8, "UINT64"},
    {ACL_BOOL, 1, "BOOL"},
};

void describe(aclTensor& tensor, const std::int64_t* dims, std::uint64_t rank, aclDataType dtype,
              const std::int64_t* strides, std::int64_t offset, aclFormat format, const std::int64_t* storage,
              std::uint64_t storage_rank, void* data) {
  tensor.shape.assign(dims, dims + rank);
  tensor.strides = strides ? Dims(strides, strides + rank) : contiguous_strides(tensor.shape);
  tensor.storage_shape.assign(storage, storage + storage_rank);
  tensor.offset = offset;
  tensor.dtype = dtype;
  tensor.format = format;
  tensor.data = data;
}

void check_not_pending(const aclTensor& tensor, const char* what) {
  if (tensor.pending > 0) violation("%s between phase 1 and phase 2 of an op that uses the tensor", what);
}

}  // namespace

std::size_t bytes_of(aclDataType dtype) {
  for (const TypeRow& row : kTypes)
    if (row.type == dtype) return row.bytes;
  return 0;
}
const char* name_of(aclDataType dtype) {
  for (const TypeRow& row : kTypes)
    if (row.type == dtype) return row.name;
  return "an unknown dtype";
}
std::string Types::text() const {
  std::string list;
  for (const TypeRow& row : kTypes)
    if (has(row.type)) list += (list.empty() ? "" : ", ") + std::string(row.name);
  return list;
}
std::int64_t count_of(const Dims& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}
Dims contiguous_strides(const Dims& shape) {
  Dims strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0; stride *= shape[axis]) strides[axis] = stride;
  return strides;
}
std::string text_of(const Dims& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + "]";
}

// ---- tensors
// -------------------------------------------------------------------------------------------------------------------
ENTRY_OF(aclTensor*, base, aclCreateTensor, const std::int64_t* dims, std::uint64_t rank, int dtype,
         const std::int64_t* strides, std::int64_t offset, int format, const std::int64_t* storage,
         std::uint64_t storage_rank, void* data) {
  if ((!dims && rank > 0) || (!storage && storage_rank > 0)) return nullptr;
  if (!bytes_of(static_cast<aclDataType>(dtype)) || rank > 8) return nullptr;
  aclTensor* tensor = new aclTensor;
  describe(*tensor, dims, rank, static_cast<aclDataType>(dtype), strides, offset,
           static_cast<aclFormat>(format), storage, storage_rank, data);
  return tensors().add(tensor);
}

ENTRY(base, aclInitTensor, aclTensor* handle, const std::int64_t* dims, std::uint64_t rank, int dtype,
      const std::int64_t* strides, std::int64_t offset, int format, const std::int64_t* storage,
      std::uint64_t storage_rank, void* data) {
  aclTensor& tensor = tensors().get(handle, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR);
  if ((!dims && rank > 0) || (!storage && storage_rank > 0)) refuse(ACLNN_ERR_PARAM_NULLPTR, "expected dims");
  check_not_pending(tensor, "aclInitTensor");
  describe(tensor, dims, rank, static_cast<aclDataType>(dtype), strides, offset,
           static_cast<aclFormat>(format), storage, storage_rank, data);
  return ACL_SUCCESS;
}

ENTRY(base, aclSetRawTensorAddr, aclTensor* handle, void* data) {
  aclTensor& tensor = tensors().get(handle, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR);
  check_not_pending(tensor, "aclSetRawTensorAddr");
  tensor.data = data;
  return ACL_SUCCESS;
}

ENTRY(base, aclGetRawTensorAddr, const aclTensor* handle, void** data) {
  if (!data) refuse(ACLNN_ERR_PARAM_NULLPTR, "expected a pointer");
  *data = tensors().get(handle, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR).data;
  return ACL_SUCCESS;
}

static int destroy_tensor(const aclTensor* handle) {
  if (!handle) return ACL_SUCCESS;
  if (tensors().alive(handle)) check_not_pending(*handle, "aclDestroyTensor");
  return tensors().remove(handle) ? 0 : ACLNN_ERR_PARAM_INVALID;
}
ENTRY(base, aclDestroyTensor, const aclTensor* handle) { return destroy_tensor(handle); }

// Arrays handed out by the getters are the caller's (delete[]).
static int hand_out(const Dims& values, std::int64_t** out, std::uint64_t* count) {
  if (!out || !count) refuse(ACLNN_ERR_PARAM_NULLPTR, "expected two pointers");
  *count = values.size();
  *out = new std::int64_t[values.size()];
  std::copy(values.begin(), values.end(), *out);
  return ACL_SUCCESS;
}
static aclTensor& known(const aclTensor* handle) {
  return tensors().get(handle, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR);
}
ENTRY(base, aclGetViewShape, const aclTensor* tensor, std::int64_t** dims, std::uint64_t* rank) {
  return hand_out(known(tensor).shape, dims, rank);
}
ENTRY(base, aclGetViewStrides, const aclTensor* tensor, std::int64_t** strides, std::uint64_t* rank) {
  return hand_out(known(tensor).strides, strides, rank);
}
ENTRY(base, aclGetStorageShape, const aclTensor* tensor, std::int64_t** dims, std::uint64_t* rank) {
  return hand_out(known(tensor).storage_shape, dims, rank);
}
ENTRY(base, aclGetViewOffset, const aclTensor* tensor, std::int64_t* offset) {
  if (!offset) refuse(ACLNN_ERR_PARAM_NULLPTR, "expected a pointer");
  *offset = known(tensor).offset;
  return ACL_SUCCESS;
}
ENTRY(base, aclGetFormat, const aclTensor* tensor, int* format) {
  if (!format) refuse(ACLNN_ERR_PARAM_NULLPTR, "expected a pointer");
  *format = known(tensor).format;
  return ACL_SUCCESS;
}
ENTRY(base, aclGetDataType, const aclTensor* tensor, int* dtype) {
  if (!dtype) refuse(ACLNN_ERR_PARAM_NULLPTR, "expected a pointer");
  *dtype = known(tensor).dtype;
  return ACL_SUCCESS;
}
ENTRY_OF(std::size_t, acl, aclDataTypeSize, int dtype) { return bytes_of(static_cast<aclDataType>(dtype)); }

// ---- scalars and arrays
// --------------------------------------------------------------------------------------------------------
template <class Stored>
static double read(const void* value) {
  Stored stored;
  std::memcpy(&stored, value, sizeof stored);
  if constexpr (std::is_class_v<Stored>)
    return static_cast<double>(static_cast<float>(stored));
  else
    return static_cast<double>(stored);
}

ENTRY_OF(aclScalar*, base, aclCreateScalar, void* value, int dtype) {
  if (!value) return nullptr;
  aclScalar scalar;
  scalar.dtype = static_cast<aclDataType>(dtype);
  switch (scalar.dtype) {
    case ACL_FLOAT:
      scalar.real = read<float>(value);
      break;
    case ACL_DOUBLE:
      scalar.real = read<double>(value);
      break;
    case ACL_FLOAT16:
      scalar.real = read<Half>(value);
      break;
    case ACL_BF16:
      scalar.real = read<BFloat>(value);
      break;
    case ACL_INT8:
      scalar.real = read<std::int8_t>(value);
      break;
    case ACL_UINT8:
      scalar.real = read<std::uint8_t>(value);
      break;
    case ACL_BOOL:
      scalar.real = read<std::uint8_t>(value) != 0;
      break;
    case ACL_INT16:
      scalar.real = read<std::int16_t>(value);
      break;
    case ACL_INT32:
      scalar.real = read<std::int32_t>(value);
      break;
    case ACL_INT64:
      std::memcpy(&scalar.integer, value, sizeof scalar.integer);
      scalar.real = static_cast<double>(scalar.integer);
      break;
    default:
      return nullptr;
  }
  if (scalar.dtype != ACL_INT64) scalar.integer = static_cast<std::int64_t>(scalar.real);
  return scalars().add(new aclScalar(scalar));
}
ENTRY_OF(aclIntArray*, base, aclCreateIntArray, const std::int64_t* values, std::uint64_t count) {
  return int_arrays().add(new aclIntArray{Dims(values, values + count)});
}
ENTRY_OF(aclFloatArray*, base, aclCreateFloatArray, const float* values, std::uint64_t count) {
  return float_arrays().add(new aclFloatArray{std::vector<float>(values, values + count)});
}
ENTRY_OF(aclBoolArray*, base, aclCreateBoolArray, const bool* values, std::uint64_t count) {
  return bool_arrays().add(new aclBoolArray{std::vector<bool>(values, values + count)});
}

template <class Object>
static int destroy_plain(Handles<Object>& of_kind, const void* handle) {
  if (!handle) return ACL_SUCCESS;
  return of_kind.remove(handle) ? 0 : ACLNN_ERR_PARAM_INVALID;
}
ENTRY(base, aclDestroyScalar, const aclScalar* handle) { return destroy_plain(scalars(), handle); }
ENTRY(base, aclDestroyIntArray, const aclIntArray* handle) { return destroy_plain(int_arrays(), handle); }
ENTRY(base, aclDestroyFloatArray, const aclFloatArray* handle) {
  return destroy_plain(float_arrays(), handle);
}
ENTRY(base, aclDestroyBoolArray, const aclBoolArray* handle) { return destroy_plain(bool_arrays(), handle); }
ENTRY(base, aclGetIntArraySize, const aclIntArray* handle, std::uint64_t* size) {
  if (!size) refuse(ACLNN_ERR_PARAM_NULLPTR, "expected a pointer");
  *size = int_arrays().get(handle, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR).values.size();
  return ACL_SUCCESS;
}

// ---- lists own their members
// -----------------------------------------------------------------------------------------------------
template <class List, class Member>
static List* create_list(Handles<List>& lists, Handles<Member>& members, const Member* const* values,
                         std::uint64_t count) {
  List* list = new List;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (values[i] && !members.alive(values[i])) violation("a list was made of an object that is not alive");
    list->members.push_back(const_cast<Member*>(values[i]));
  }
  return lists.add(list);
}
ENTRY_OF(aclTensorList*, base, aclCreateTensorList, const aclTensor* const* values, std::uint64_t count) {
  return create_list(tensor_lists(), tensors(), values, count);
}
ENTRY_OF(aclScalarList*, base, aclCreateScalarList, const aclScalar* const* values, std::uint64_t count) {
  return create_list(scalar_lists(), scalars(), values, count);
}
ENTRY(base, aclGetTensorListSize, const aclTensorList* handle, std::uint64_t* size) {
  if (!size) refuse(ACLNN_ERR_PARAM_NULLPTR, "expected a pointer");
  *size = tensor_lists().get(handle, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR).members.size();
  return ACL_SUCCESS;
}
ENTRY(base, aclDestroyTensorList, const aclTensorList* handle) {
  if (!handle) return ACL_SUCCESS;
  if (!tensor_lists().alive(handle)) return tensor_lists().remove(handle), ACLNN_ERR_PARAM_INVALID;
  for (const aclTensor* member : handle->members) destroy_tensor(member);
  tensor_lists().remove(handle);
  return ACL_SUCCESS;
}
ENTRY(base, aclDestroyScalarList, const aclScalarList* handle) {
  if (!handle) return ACL_SUCCESS;
  if (!scalar_lists().alive(handle)) return scalar_lists().remove(handle), ACLNN_ERR_PARAM_INVALID;
  for (const aclScalar* member : handle->members) destroy_plain(scalars(), member);
  scalar_lists().remove(handle);
  return ACL_SUCCESS;
}

}  // namespace ascend_double
