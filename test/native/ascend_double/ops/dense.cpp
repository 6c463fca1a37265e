#include "ascend_double/ops/dense.h"

#include <algorithm>
#include <thread>

namespace ascend_double {

void parallel(std::int64_t count, std::int64_t grain,
              const std::function<void(std::int64_t, std::int64_t)>& body) {
  const auto threads = static_cast<std::int64_t>(
      setting("THREADS", static_cast<std::int64_t>(std::min(std::thread::hardware_concurrency(), 4u))));
  const std::int64_t parts =
      std::max<std::int64_t>(1, std::min(threads, count / std::max<std::int64_t>(1, grain)));
  if (parts == 1) return body(0, count);
  std::vector<std::thread> helpers;
  for (std::int64_t part = 1; part < parts; ++part)
    helpers.emplace_back([&, part] { body(count * part / parts, count * (part + 1) / parts); });
  body(0, count / parts);
  for (std::thread& helper : helpers) helper.join();
}

void each_run(const Dims& shape, const Dims& strides,
              const std::function<void(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>& visit) {
  // Axes that continue each other are one axis.
  Dims sizes, steps;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] == 1) continue;
    if (!sizes.empty() && steps.back() == strides[axis] * shape[axis]) {
      sizes.back() *= shape[axis];
      steps.back() = strides[axis];
    } else {
      sizes.push_back(shape[axis]);
      steps.push_back(strides[axis]);
    }
  }
  if (sizes.empty()) return visit(0, 0, 1, 1);
  const std::int64_t length = sizes.back(), stride = steps.back();
  sizes.pop_back();
  steps.pop_back();
  Dims at(sizes.size(), 0);
  const std::int64_t runs = count_of(sizes);
  std::int64_t offset = 0;
  for (std::int64_t run = 0; run < runs; ++run) {
    visit(run * length, offset, length, stride);
    for (std::size_t axis = sizes.size(); axis-- > 0;) {
      offset += steps[axis];
      if (++at[axis] < sizes[axis]) break;
      offset -= at[axis] * steps[axis];
      at[axis] = 0;
    }
  }
}

Dims broadcast_strides(const Operand& from, const Dims& shape) {
  Dims strides(shape.size(), 0);
  const std::size_t lead = shape.size() - from.shape.size();
  for (std::size_t axis = 0; axis < from.shape.size(); ++axis)
    if (from.shape[axis] != 1) strides[lead + axis] = from.strides[axis];
  return strides;
}

float rounded(float value, aclDataType dtype) {
  if (dtype == ACL_BF16) return static_cast<float>(BFloat(value));
  if (dtype == ACL_FLOAT16) return static_cast<float>(Half(value));
  return value;
}

Dims broadcast(Plan& plan, const std::vector<Operand>& operands) {
  Dims shape;
  for (const Operand& operand : operands) {
    if (operand.shape.size() > shape.size())
      shape.insert(shape.begin(), operand.shape.size() - shape.size(), 1);
    const std::size_t lead = shape.size() - operand.shape.size();
    for (std::size_t axis = 0; axis < operand.shape.size(); ++axis) {
      std::int64_t& size = shape[lead + axis];
      const std::int64_t own = operand.shape[axis];
      plan.require(own == size || own == 1 || size == 1, "%s does not broadcast to %s",
                   text_of(operand.shape).c_str(), text_of(shape).c_str());
      if (size == 1) size = own;
    }
  }
  return shape;
}

namespace {
float pairwise(const float* values, std::int64_t count) {
  if (count > 512) {
    const std::int64_t half = count / 2 / 8 * 8;
    return pairwise(values, half) + pairwise(values + half, count - half);
  }
  float lanes[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += values[i + lane];
  float rest = 0;
  for (; i < count; ++i) rest += values[i];
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7])) +
         rest;
}
}  // namespace

float sum(const float* values, std::int64_t count, std::int64_t start) {
  if (start == 0 || count < 2) return pairwise(values, count);
  // One after the other: the worst of orders, so that the difference shows.
  float total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += values[(start + i) % count];
  return total;
}

}  // namespace ascend_double
