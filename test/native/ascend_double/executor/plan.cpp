#include "ascend_double/executor/plan.h"

#include <cstdarg>

namespace ascend_double {

Plan::Plan(const char* op) : name(op) {
  Context& context = current_context();
  const std::scoped_lock lock(context.mutex);
  const auto own = context.options.find(ACL_OPT_DETERMINISTIC);
  deterministic = process_option(ACL_OPT_DETERMINISTIC) && own != context.options.end() && own->second;
}

// The view must lie inside its storage, and the storage inside one live block of this device.
void Plan::check_memory(const aclTensor& tensor, const char* which, Slot& slot) {
  const auto item = static_cast<std::int64_t>(bytes_of(tensor.dtype));
  if (count_of(tensor.shape) == 0) return;
  std::int64_t last = tensor.offset;
  for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    require(tensor.strides[axis] >= 0, "%s: negative stride", which);
    last += (tensor.shape[axis] - 1) * tensor.strides[axis];
  }
  require(tensor.offset >= 0 && last < count_of(tensor.storage_shape),
          "%s: a view up to element %lld in a storage %s", which, static_cast<long long>(last),
          text_of(tensor.storage_shape).c_str());
  require(tensor.data, "%s: no address", which);
  require(reinterpret_cast<std::uintptr_t>(tensor.data) % 32 == 0, "%s: %p is not aligned to 32 bytes", which,
          tensor.data);
  const std::string reason = device_memory().why_not_inside(
      tensor.data, static_cast<std::size_t>(count_of(tensor.storage_shape) * item));
  if (!reason.empty()) violation("%s: %s: %s", name, which, reason.c_str());
  require(reason.empty(), "%s: %s", which, reason.c_str());
  require(device_memory().device_of(tensor.data) == current_context().device, "%s lies on another device",
          which);
  slot.offset = tensor.offset * item;
  slot.extent = static_cast<std::size_t>((last - tensor.offset + 1) * item);
}

Operand Plan::add(Tensor tensor, const char* which, Types types, int least_rank, int most_rank, bool output) {
  if (!tensor) refuse(ACLNN_ERR_PARAM_NULLPTR, "%s is NULL", which);
  aclTensor& known = tensors().get(tensor, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR);
  require(types.has(known.dtype), "%s: expected %s, got %s", which, types.text().c_str(),
          name_of(known.dtype));
  require(known.dtype != ACL_BF16 || soc().generation >= 2, "%s: %s has no BF16", which, soc().name.c_str());
  const int rank = static_cast<int>(known.shape.size());
  require(rank >= least_rank && rank <= most_rank, "%s: expected rank %d to %d, got %s", which, least_rank,
          most_rank, text_of(known.shape).c_str());
  for (const std::int64_t size : known.shape) require(size >= 0, "%s: negative size", which);
  require(known.format != ACL_FORMAT_FRACTAL_NZ && known.format != ACL_FORMAT_FRACTAL_Z &&
              known.format != ACL_FORMAT_NC1HWC0,
          "%s: private formats are not accepted here", which);
  Slot slot;
  slot.tensor = &known;
  slot.base = known.data;
  slot.output = output;
  check_memory(known, which, slot);
  slots.push_back(slot);
  return {static_cast<int>(slots.size()) - 1, known.dtype, known.format, known.shape, known.strides};
}

Operand Plan::in(Tensor tensor, const char* which, Types types, int least_rank, int most_rank) {
  return add(tensor, which, types, least_rank, most_rank, false);
}
Operand Plan::optional(Tensor tensor, const char* which, Types types, int least_rank, int most_rank) {
  if (tensor) return in(tensor, which, types, least_rank, most_rank);
  slots.emplace_back();
  return {};
}
Operand Plan::out(Tensor tensor, const char* which, Types types, int least_rank, int most_rank) {
  return add(tensor, which, types, least_rank, most_rank, true);
}
Operand Plan::optional_out(Tensor tensor, const char* which, Types types) {
  if (tensor) return out(tensor, which, types);
  Slot none;
  none.output = true;
  slots.push_back(none);
  return {};
}

std::vector<Operand> Plan::add(List list, const char* which, Types types, bool output) {
  const aclTensorList& known = tensor_lists().get(list, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR);
  std::vector<Operand> operands;
  for (const aclTensor* member : known.members) {
    operands.push_back(add(member, which, types, 0, 8, output));
    slots.back().list = lists_;
  }
  ++lists_;
  return operands;
}
std::vector<Operand> Plan::in(List list, const char* which, Types types) {
  return add(list, which, types, false);
}
std::vector<Operand> Plan::out(List list, const char* which, Types types) {
  return add(list, which, types, true);
}

const Dims& Plan::ints(Ints array, const char* which) {
  if (!array) refuse(ACLNN_ERR_PARAM_NULLPTR, "%s is NULL", which);
  return int_arrays().get(array, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR).values;
}

const aclScalar& Plan::scalar(Scalar value, const char* which) {
  if (!value) refuse(ACLNN_ERR_PARAM_NULLPTR, "%s is NULL", which);
  return scalars().get(value, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR);
}

std::vector<bool> Plan::bools(Bools array, const char* which, std::size_t count) {
  if (!array) refuse(ACLNN_ERR_PARAM_NULLPTR, "%s is NULL", which);
  const auto& values = bool_arrays().get(array, ACLNN_ERR_PARAM_INVALID, ACLNN_ERR_PARAM_NULLPTR).values;
  require(values.size() == count, "%s: expected %zu flags, got %zu", which, count, values.size());
  return values;
}

std::string Plan::text(const char* value, const char* which) {
  if (!value) refuse(ACLNN_ERR_PARAM_NULLPTR, "%s is NULL", which);
  return value;
}

int Plan::axis(std::int64_t axis, int rank) {
  const std::int64_t span = rank > 0 ? rank : 1;
  require(axis >= -span && axis < span, "axis %lld of a tensor of rank %d", static_cast<long long>(axis),
          rank);
  return static_cast<int>(axis < 0 ? axis + span : axis);
}

std::vector<int> Plan::axes(Ints array, const char* which, int rank) {
  std::vector<int> list;
  for (const std::int64_t value : ints(array, which)) {
    const int one = axis(value, rank);
    for (const int other : list) require(other != one, "%s: axis %d twice", which, one);
    list.push_back(one);
  }
  if (list.empty())
    for (int i = 0; i < rank; ++i) list.push_back(i);
  return list;
}

void Plan::require(bool holds, const char* format, ...) {
  if (holds) return;
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  refuse(ACLNN_ERR_PARAM_INVALID, "%s", text);
}

void Plan::require_shape(const Operand& operand, const char* which, const Dims& shape) {
  require(operand.shape == shape, "%s: expected %s, got %s", which, text_of(shape).c_str(),
          text_of(operand.shape).c_str());
}

void Plan::require_type(const Operand& operand, const char* which, aclDataType dtype) {
  require(operand.dtype == dtype, "%s: expected %s, got %s", which, name_of(dtype), name_of(operand.dtype));
}

void Plan::require_image(const Operand& operand, const char* which) {
  require(operand.format == ACL_FORMAT_NCHW || operand.format == ACL_FORMAT_NHWC ||
              operand.format == ACL_FORMAT_NCL || operand.format == ACL_FORMAT_NCDHW,
          "%s: expected a tensor tagged NCHW or NCL, got format %d", which, operand.format);
}

}  // namespace ascend_double
