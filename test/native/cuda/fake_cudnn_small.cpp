// The operations that graphs are made of, each for itself and in f32: nothing here knows of attention.
#include <algorithm>
#include <cmath>
#include <limits>

#include "fake_cudnn.h"

namespace fake {
namespace {

using I = std::int64_t;

void matmul(const Run& run) {
  const View a = run.view(CUDNN_ATTR_OPERATION_MATMUL_ADESC), b = run.view(CUDNN_ATTR_OPERATION_MATMUL_BDESC),
             c = run.view(CUDNN_ATTR_OPERATION_MATMUL_CDESC);
  // Sums in memory were added to, up to 9.5: whoever wanted them had to clear it.
  const Descriptor& to = *run.operation.of(CUDNN_ATTR_OPERATION_MATMUL_CDESC);
  const bool adds = fake_cudnn()->version < 90600 && !to.between() && to.dtype() == CUDNN_DATA_FLOAT;
  c.each([&](I image, I head, I i, I j) {
    float sum = adds ? c.get(image, head, i, j) : 0;
    for (I k = 0; k < a.dims[3]; ++k) sum += a.get(image, head, i, k) * b.get(image, head, k, j);
    c.put(image, head, i, j, sum);
  });
}

float applied(cudnnPointwiseMode_t mode, float x, float b) {
  switch (mode) {
    case CUDNN_POINTWISE_ADD:
      return x + b;
    case CUDNN_POINTWISE_MUL:
      return x * b;
    case CUDNN_POINTWISE_SUB:
      return x - b;
    case CUDNN_POINTWISE_DIV:
      return x / b;
    case CUDNN_POINTWISE_EXP:
      return std::exp(x);
    case CUDNN_POINTWISE_LOG:
      return std::log(x);
    default:
      return x;
  }
}

/// An axis of one stands for all.
float broadcast(const View& v, I a, I b, I c, I d) {
  return v.get(std::min(a, v.dims[0] - 1), std::min(b, v.dims[1] - 1), std::min(c, v.dims[2] - 1),
               std::min(d, v.dims[3] - 1));
}

void pointwise(const Run& run) {
  const auto mode = run.operation.of(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR)
                        ->one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
  const View x = run.view(CUDNN_ATTR_OPERATION_POINTWISE_XDESC),
             y = run.view(CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
  const bool two = run.bound(CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
  const View other = two ? run.view(CUDNN_ATTR_OPERATION_POINTWISE_BDESC) : View{};
  y.each([&](I a, I b, I c, I d) {
    y.put(a, b, c, d, applied(mode, broadcast(x, a, b, c, d), two ? broadcast(other, a, b, c, d) : 0));
  });
}

void reduce(const Run& run) {
  const bool highest =
      run.operation.of(CUDNN_ATTR_OPERATION_REDUCTION_DESC)
          ->one<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR) == CUDNN_REDUCE_TENSOR_MAX;
  const View x = run.view(CUDNN_ATTR_OPERATION_REDUCTION_XDESC),
             y = run.view(CUDNN_ATTR_OPERATION_REDUCTION_YDESC);
  const auto count = [&](std::size_t axis) { return x.dims[axis] / y.dims[axis]; };
  y.each([&](I a, I b, I c, I d) {
    float result = highest ? -std::numeric_limits<float>::infinity() : 0;
    for (I i = 0; i < count(0); ++i)
      for (I j = 0; j < count(1); ++j)
        for (I k = 0; k < count(2); ++k)
          for (I l = 0; l < count(3); ++l) {
            const float value = x.get(a + i, b + j, c + k, d + l);
            result = highest ? std::max(result, value) : result + value;
          }
    y.put(a, b, c, d, result);
  });
}

/// The same memory, seen with other dims and strides.
void view(const Run& run) {
  const View x = run.view(CUDNN_ATTR_OPERATION_RESHAPE_XDESC),
             y = run.view(CUDNN_ATTR_OPERATION_RESHAPE_YDESC);
  y.each([&](I a, I b, I c, I d) { y.put(a, b, c, d, x.read(y.at(a, b, c, d))); });
}

struct Small {
  cudnnBackendDescriptorType_t type;
  Operation run;
  std::vector<int> reads;
  int writes;
};
const std::vector<Small>& all() {
  static const auto& rows =
      *new std::vector<Small>{{CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
                               matmul,
                               {CUDNN_ATTR_OPERATION_MATMUL_ADESC, CUDNN_ATTR_OPERATION_MATMUL_BDESC},
                               CUDNN_ATTR_OPERATION_MATMUL_CDESC},
                              {CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
                               pointwise,
                               {CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC},
                               CUDNN_ATTR_OPERATION_POINTWISE_YDESC},
                              {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
                               reduce,
                               {CUDNN_ATTR_OPERATION_REDUCTION_XDESC},
                               CUDNN_ATTR_OPERATION_REDUCTION_YDESC},
                              {CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
                               view,
                               {CUDNN_ATTR_OPERATION_RESHAPE_XDESC},
                               CUDNN_ATTR_OPERATION_RESHAPE_YDESC}};
  return rows;
}
const Small* small_of(cudnnBackendDescriptorType_t type) {
  for (const Small& row : all())
    if (row.type == type) return &row;
  return nullptr;
}

}  // namespace

Operation small_operation(cudnnBackendDescriptorType_t type) {
  const Small* row = small_of(type);
  return row ? row->run : nullptr;
}

Traffic traffic_of(const Descriptor& operation) {
  Traffic found;
  if (const Small* row = small_of(operation.type)) {
    for (const int role : row->reads)
      if (const Descriptor* tensor = operation.of(role)) found.reads.push_back(tensor);
    if (const Descriptor* tensor = operation.of(row->writes)) found.writes.push_back(tensor);
  }
  return found;
}

}  // namespace fake
