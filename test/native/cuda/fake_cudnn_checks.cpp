// What the real library refuses of a descriptor when it is finished, as far as its header tells.
#include <algorithm>
#include <set>

#include "fake_cudnn.h"

namespace fake {
namespace {

bool float_type(const Descriptor& d, int name) {
  return d.has(name) && d.one<cudnnDataType_t>(name) == CUDNN_DATA_FLOAT;
}

bool good_tensor(const Descriptor& d) {
  const auto dims = d.dims(), strides = d.list<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
  if (!d.has(CUDNN_ATTR_TENSOR_UNIQUE_ID) || !d.has(CUDNN_ATTR_TENSOR_DATA_TYPE)) return false;
  if (d.dtype() != CUDNN_DATA_FLOAT && d.dtype() != CUDNN_DATA_HALF && d.dtype() != CUDNN_DATA_BFLOAT16)
    return false;
  const auto alignment = d.one<std::int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
  if (alignment < bytes_of(d.dtype()) || (alignment & (alignment - 1)) != 0) return false;
  if (d.between() && d.by_value()) return false;
  return dims.size() == 4 && strides.size() == 4 &&
         std::all_of(dims.begin(), dims.end(), [](std::int64_t dim) { return dim >= 1; });
}

bool good_pointwise_manner(const Descriptor& d) {
  static constexpr cudnnPointwiseMode_t kKnown[] = {
      CUDNN_POINTWISE_ADD, CUDNN_POINTWISE_MUL, CUDNN_POINTWISE_DIV,     CUDNN_POINTWISE_SUB,
      CUDNN_POINTWISE_EXP, CUDNN_POINTWISE_LOG, CUDNN_POINTWISE_IDENTITY};
  if (!d.has(CUDNN_ATTR_POINTWISE_MODE) || !float_type(d, CUDNN_ATTR_POINTWISE_MATH_PREC)) return false;
  return std::find(std::begin(kKnown), std::end(kKnown),
                   d.one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE)) != std::end(kKnown);
}

bool good_reduction_manner(const Descriptor& d) {
  if (!d.has(CUDNN_ATTR_REDUCTION_OPERATOR) || !float_type(d, CUDNN_ATTR_REDUCTION_COMP_TYPE)) return false;
  const auto op = d.one<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR);
  return op == CUDNN_REDUCE_TENSOR_ADD || op == CUDNN_REDUCE_TENSOR_MAX;
}

/// [.., M, K] times [.., K, N] into [.., M, N]
bool good_matmul(const Descriptor& d) {
  const Descriptor *a = d.of(CUDNN_ATTR_OPERATION_MATMUL_ADESC), *b = d.of(CUDNN_ATTR_OPERATION_MATMUL_BDESC),
                   *c = d.of(CUDNN_ATTR_OPERATION_MATMUL_CDESC);
  if (!a || !b || !c || !d.of(CUDNN_ATTR_OPERATION_MATMUL_DESC)) return false;
  const auto m = a->dims(), n = b->dims(), o = c->dims();
  if (m[0] != n[0] || m[1] != n[1] || m[0] != o[0] || m[1] != o[1]) return false;
  // The header: the innermost of the last two axes must be packed.
  for (const Descriptor* each : {a, b, c}) {
    const auto strides = each->list<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
    if (strides[2] != 1 && strides[3] != 1) return false;
  }
  return m[3] == n[2] && o[2] == m[2] && o[3] == n[3];
}

bool good_pointwise(const Descriptor& d) {
  const Descriptor *x = d.of(CUDNN_ATTR_OPERATION_POINTWISE_XDESC),
                   *b = d.of(CUDNN_ATTR_OPERATION_POINTWISE_BDESC),
                   *y = d.of(CUDNN_ATTR_OPERATION_POINTWISE_YDESC),
                   *manner = d.of(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
  if (!x || !y || !manner) return false;
  const auto mode = manner->one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
  const bool two = mode == CUDNN_POINTWISE_ADD || mode == CUDNN_POINTWISE_MUL ||
                   mode == CUDNN_POINTWISE_DIV || mode == CUDNN_POINTWISE_SUB;
  if (two != (b != nullptr)) return false;
  for (std::size_t axis = 0; axis < 4; ++axis) {
    const std::int64_t to = y->dims()[axis];
    std::int64_t widest = 0;
    for (const Descriptor* each : {x, b}) {
      if (!each) continue;
      if (each->dims()[axis] != to && each->dims()[axis] != 1) return false;
      widest = std::max(widest, each->dims()[axis]);
    }
    if (widest != to) return false;
  }
  return true;
}

bool good_reduction(const Descriptor& d) {
  const Descriptor *x = d.of(CUDNN_ATTR_OPERATION_REDUCTION_XDESC),
                   *y = d.of(CUDNN_ATTR_OPERATION_REDUCTION_YDESC);
  if (!x || !y || !d.of(CUDNN_ATTR_OPERATION_REDUCTION_DESC)) return false;
  for (std::size_t axis = 0; axis < 4; ++axis)
    if (y->dims()[axis] != x->dims()[axis] && y->dims()[axis] != 1) return false;
  return true;
}

bool good_view(const Descriptor& d) {
  const Descriptor *x = d.of(CUDNN_ATTR_OPERATION_RESHAPE_XDESC),
                   *y = d.of(CUDNN_ATTR_OPERATION_RESHAPE_YDESC);
  if (!x || !y) return false;
  std::int64_t from = 1, to = 1;
  for (const std::int64_t dim : x->dims()) from *= dim;
  for (const std::int64_t dim : y->dims()) to *= dim;
  return from == to;
}

/// Each tensor is written once and by one operation, and one between operations before it is read.
bool good_graph(const Descriptor& d) {
  if (!d.has(CUDNN_ATTR_OPERATIONGRAPH_HANDLE)) return false;
  const auto operations = d.list<const Descriptor*>(CUDNN_ATTR_OPERATIONGRAPH_OPS);
  if (operations.empty()) return false;
  std::map<std::int64_t, const Descriptor*> known;
  std::set<std::int64_t> written;
  for (const Descriptor* operation : operations) {
    if (operations.size() > 1 && !small_operation(operation->type)) return false;
    const Traffic traffic = traffic_of(*operation);
    for (const auto* list : {&traffic.reads, &traffic.writes})
      for (const Descriptor* tensor : *list)
        if (!known.emplace(tensor->id(), tensor).second && known[tensor->id()] != tensor) return false;
    for (const Descriptor* tensor : traffic.reads)
      if (tensor->between() && !written.count(tensor->id())) return false;
    for (const Descriptor* tensor : traffic.writes)
      if (tensor->by_value() || !written.insert(tensor->id()).second) return false;
  }
  return true;
}

bool good(const Descriptor& d) {
  switch (d.type) {
    case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
      return good_tensor(d);
    case CUDNN_BACKEND_MATMUL_DESCRIPTOR:
      return float_type(d, CUDNN_ATTR_MATMUL_COMP_TYPE);
    case CUDNN_BACKEND_POINTWISE_DESCRIPTOR:
      return good_pointwise_manner(d);
    case CUDNN_BACKEND_REDUCTION_DESCRIPTOR:
      return good_reduction_manner(d);
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
      return good_matmul(d);
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
      return good_pointwise(d);
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
      return good_reduction(d);
    case CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR:
      return good_view(d);
    case CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR:
      return good_graph(d);
    case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
      return d.of(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG) && d.of(CUDNN_ATTR_EXECUTION_PLAN_HANDLE);
    default:
      return true;
  }
}

}  // namespace

cudnnStatus_t check(const Descriptor& descriptor) {
  return good(descriptor) ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM;
}

}  // namespace fake
