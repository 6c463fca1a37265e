// One element at a time. Bound by memory: which op it is costs a branch that all threads take alike.
#include <array>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/layout.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;

DF_DEVICE float unary_value(UnaryOp op, float x, float a, float b) {
  switch (op) {
#define DF_CASE(name) \
  case UnaryOp::name: \
    return name##_op::value(x, a, b);
    DANCEFLUX_CUDA_UNARY_OPS(DF_CASE)
#undef DF_CASE
  }
  return 0;
}
DF_DEVICE float unary_slope(UnaryOp op, float x, float a, float b) {
  switch (op) {
#define DF_CASE(name) \
  case UnaryOp::name: \
    return name##_op::slope(x, a, b);
    DANCEFLUX_CUDA_UNARY_OPS(DF_CASE)
#undef DF_CASE
  }
  return 0;
}
DF_DEVICE float binary_value(BinaryOp op, float a, float b, float b_scale) {
  switch (op) {
#define DF_CASE(name)  \
  case BinaryOp::name: \
    return name##_op::value(a, b, b_scale);
    DANCEFLUX_CUDA_BINARY_OPS(DF_CASE)
#undef DF_CASE
  }
  return 0;
}

struct UnaryValue {
  UnaryOp op;
  float a, b;
  DF_DEVICE float operator()(const float (&in)[1]) const { return unary_value(op, in[0], a, b); }
};
struct UnarySlope {
  UnaryOp op;
  float a, b;
  DF_DEVICE float operator()(const float (&in)[2]) const { return in[1] * unary_slope(op, in[0], a, b); }
};
struct BinaryValue {
  BinaryOp op;
  float b_scale;
  DF_DEVICE float operator()(const float (&in)[2]) const { return binary_value(op, in[0], in[1], b_scale); }
};
template <class T, int N>
struct Operands {
  T* out;
  const T* in[N];
};

template <class T, int N, class F>
__global__ void map_flat(Operands<T, N> operands, std::int64_t total, F f) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * Pack<T>::kCount;
  if (at >= total) return;
  if (at + Pack<T>::kCount > total) {  // the last ones
    for (std::int64_t i = at; i < total; ++i) {
      float in[N];
      for (int k = 0; k < N; ++k) in[k] = widen(operands.in[k][i]);
      operands.out[i] = narrow_to<T>(f(in));
    }
    return;
  }
  Pack<T> from[N], to;
  for (int k = 0; k < N; ++k) from[k] = *reinterpret_cast<const Pack<T>*>(operands.in[k] + at);
  for (int j = 0; j < Pack<T>::kCount; ++j) {
    float in[N];
    for (int k = 0; k < N; ++k) in[k] = widen(from[k].value[j]);
    to.value[j] = narrow_to<T>(f(in));
  }
  *reinterpret_cast<Pack<T>*>(operands.out + at) = to;
}

template <class T, int N, class F>
__global__ void map_strided(Operands<T, N> operands, Layout<N + 1> layout, F f) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.total) return;
  std::int64_t offset[N + 1];
  layout.offsets(i, offset);
  float in[N];
  for (int k = 0; k < N; ++k) in[k] = widen(operands.in[k][offset[k + 1]]);
  operands.out[offset[0]] = narrow_to<T>(f(in));
}

bool aligned(const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.address()) % 16 == 0; }

template <int N, class F>
void map(CudaBackend& device, const char* op, const Tensor& out, const std::array<const Tensor*, N>& in,
         const F& f) {
  std::array<const Tensor*, N + 1> all{&out};
  bool flat = aligned(out);
  for (std::size_t k = 0; k < N; ++k) {
    all[k + 1] = in[k];
    flat = flat && aligned(*in[k]);
  }
  const Layout<N + 1> layout = layout_of<N + 1>(all);
  if (layout.total == 0) return;
  with_activation(op, out.dtype(), [&](auto type) {
    using T = decltype(type);
    Operands<T, N> operands{out.data<T>(), {}};
    for (std::size_t k = 0; k < N; ++k) operands.in[k] = in[k]->template data<T>();
    if (flat && layout.flat()) {
      device.launch({.x = blocks_for(layout.total, kThreads * Pack<T>::kCount), .threads = kThreads},
                    map_flat<T, N, F>, operands, layout.total, f);
    } else {
      device.launch({.x = blocks_for(layout.total, kThreads), .threads = kThreads}, map_strided<T, N, F>,
                    operands, layout, f);
    }
  });
}

}  // namespace

void CudaBackend::unary(UnaryOp op, const Tensor& out, const Tensor& x, float a, float b) {
  enter("unary");
  map<1>(*this, "unary", out, {&x}, UnaryValue{op, a, b});
}

void CudaBackend::unary_backward(UnaryOp op, const Tensor& dx, const Tensor& x, const Tensor& dy, float a,
                                 float b) {
  enter("unary_backward");
  map<2>(*this, "unary_backward", dx, {&x, &dy}, UnarySlope{op, a, b});
}

void CudaBackend::binary(BinaryOp op, const Tensor& out, const Tensor& a, const Tensor& b, float b_scale) {
  enter("binary");
  map<2>(*this, "binary", out, {&a, &b}, BinaryValue{op, b_scale});
}

}  // namespace danceflux::cuda
