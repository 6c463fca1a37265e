// Ops along some axes of a tensor: seen as a matrix of rows, the axes in question last.
#pragma once
#include "ascend_double/ops/dense.h"

namespace ascend_double {

struct Rows {
  Operand operand;  // axes reordered: kept ones, then the others
  std::int64_t rows = 1, width = 1;
};

inline Rows rows_of(const Operand& operand, const std::vector<int>& axes) {
  Rows result{operand, 1, 1};
  result.operand.shape.clear();
  result.operand.strides.clear();
  const auto chosen = [&](int axis) { return std::find(axes.begin(), axes.end(), axis) != axes.end(); };
  for (const bool wanted : {false, true})
    for (int axis = 0; axis < operand.rank(); ++axis) {
      if (chosen(axis) != wanted) continue;
      result.operand.shape.push_back(operand.shape[static_cast<std::size_t>(axis)]);
      result.operand.strides.push_back(operand.strides[static_cast<std::size_t>(axis)]);
      (wanted ? result.width : result.rows) *= operand.shape[static_cast<std::size_t>(axis)];
    }
  return result;
}

/// The shape without the axes, or with 1 in their place.
inline Dims reduced_shape(const Operand& operand, const std::vector<int>& axes, bool keep) {
  Dims shape;
  for (int axis = 0; axis < operand.rank(); ++axis) {
    const bool gone = std::find(axes.begin(), axes.end(), axis) != axes.end();
    if (!gone)
      shape.push_back(operand.size(axis));
    else if (keep)
      shape.push_back(1);
  }
  return shape;
}

inline std::vector<int> last_axes(const Operand& operand, std::size_t count) {
  std::vector<int> axes;
  for (std::size_t i = 0; i < count; ++i) axes.push_back(operand.rank() - static_cast<int>(count - i));
  return axes;
}

/// Where a sum begins: at 0, or anywhere for an op that is deterministic on request only.
inline std::int64_t start_of(const Launch& launch, bool deterministic, std::int64_t row) {
  return deterministic ? 0
                       : static_cast<std::int64_t>(
                             (launch.chance + static_cast<std::uint64_t>(row) * 7919) >> 1 & 0xffff);
}

}  // namespace ascend_double
