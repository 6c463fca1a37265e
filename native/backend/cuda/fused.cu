// What lies between the products of a transformer block. B batch, L tokens, D width, H heads, K head width.
#include "backend/cuda/norm_rows.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;

/// y = normed * (1 + scale) + shift, both [B, D].
template <class T>
struct Modulate {
  const T *scale, *shift;
  std::int64_t scale_row, scale_step, shift_row, shift_step, tokens;

  template <int kCount>
  DF_DEVICE void forward(std::int64_t row, std::int64_t at, std::int64_t width, float (&v)[kCount]) const {
    const std::int64_t image = row / tokens;
    for (int j = 0; j < kCount; ++j) {
      if (at + j >= width) return;
      v[j] = v[j] * (1.0f + widen(scale[image * scale_row + (at + j) * scale_step])) +
             widen(shift[image * shift_row + (at + j) * shift_step]);
    }
  }
  template <int kCount>
  DF_DEVICE void backward(std::int64_t row, std::int64_t at, std::int64_t width, float (&d)[kCount]) const {
    const std::int64_t image = row / tokens;
    for (int j = 0; j < kCount; ++j)
      if (at + j < width) d[j] *= 1.0f + widen(scale[image * scale_row + (at + j) * scale_step]);
  }
  DF_DEVICE float plain(std::int64_t, std::int64_t i, const T* dy, std::int64_t step) const {
    return widen(dy[i * step]);
  }
};

/// y = turn(normed * weight) by the angles of its token; rows are [B, L, H].
struct Turn {
  const float *weight, *cos, *sin;  // [K], [L, K / 2]
  std::int64_t tokens, heads, half;

  DF_DEVICE std::int64_t angles(std::int64_t row) const { return row / heads % tokens * half; }
  template <int kCount>
  DF_DEVICE void forward(std::int64_t row, std::int64_t at, std::int64_t width, float (&v)[kCount]) const {
    const std::int64_t base = angles(row);
    for (int j = 0; j < kCount; j += 2) {
      if (at + j >= width) return;
      const std::int64_t pair = base + (at + j) / 2;
      const Pair turned = rotate(v[j] * weight[at + j], v[j + 1] * weight[at + j + 1], cos[pair], sin[pair]);
      v[j] = turned.first;
      v[j + 1] = turned.second;
    }
  }
  template <int kCount>
  DF_DEVICE void backward(std::int64_t row, std::int64_t at, std::int64_t width, float (&d)[kCount]) const {
    const std::int64_t base = angles(row);
    for (int j = 0; j < kCount; j += 2) {
      if (at + j >= width) return;
      const std::int64_t pair = base + (at + j) / 2;
      const Pair turned = rotate(d[j], d[j + 1], cos[pair], -sin[pair]);
      d[j] = turned.first * weight[at + j];
      d[j + 1] = turned.second * weight[at + j + 1];
    }
  }
  template <class T>
  DF_DEVICE float plain(std::int64_t row, std::int64_t i, const T* dy, std::int64_t step) const {
    const std::int64_t pair = angles(row) + i / 2, even = i / 2 * 2;
    const Pair turned = rotate(widen(dy[even * step]), widen(dy[(even + 1) * step]), cos[pair], -sin[pair]);
    return i % 2 ? turned.second : turned.first;
  }
};

template <class T>
Modulate<T> modulation(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  const bool shifted = shift.defined();
  return {scale.data<T>(),
          shifted ? shift.data<T>() : nullptr,
          scale.strides()[0],
          scale.strides()[1],
          shifted ? shift.strides()[0] : 0,
          shifted ? shift.strides()[1] : 0,
          x.dim(1)};
}

// ---- rope alone
// -----------------------------------------------------------------------------------------------------------

template <class T>
__global__ void rope_pairs(T* out, const T* x, const float* cos, const float* sin, Layout<2> layout,
                           std::int64_t tokens, std::int64_t heads, std::int64_t half, std::int64_t out_step,
                           std::int64_t x_step, float sign) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.total * half) return;
  const std::int64_t row = i / half, pair = i % half;
  std::int64_t offset[2];
  layout.offsets(row, offset);
  const std::int64_t at = row / heads % tokens * half + pair, from = offset[1] + 2 * pair * x_step,
                     to = offset[0] + 2 * pair * out_step;
  const Pair turned = rotate(widen(x[from]), widen(x[from + x_step]), cos[at], sign * sin[at]);
  out[to] = narrow_to<T>(turned.first);
  out[to + out_step] = narrow_to<T>(turned.second);
}

// ---- x + gate * y
// ---------------------------------------------------------------------------------------------------------

struct Vectors {  // [B, D]
  std::int64_t row, step;
};

template <class T>
__global__ void gated_add(T* out, const T* x, const T* y, const T* gate, RowLayout<3> layout, Vectors gates,
                          std::int64_t tokens) {
  const std::int64_t row = blockIdx.x;
  std::int64_t offset[3];
  layout.rows.offsets(row, offset);
  const Row<T> to{out + offset[0], layout.step[0], layout.width, layout.packs};
  const Row<const T> from{x + offset[1], layout.step[1], layout.width, layout.packs};
  const Row<const T> added{y + offset[2], layout.step[2], layout.width, layout.packs};
  const T* g = gate + row / tokens * gates.row;
  float a[kPack<T>], b[kPack<T>];
  for (std::int64_t at = threadIdx.x * kPack<T>; at < layout.width; at += kThreads * kPack<T>) {
    from.load(at, a);
    added.load(at, b);
    for (int j = 0; j < kPack<T>; ++j)
      if (at + j < layout.width) a[j] += widen(g[(at + j) * gates.step]) * b[j];
    to.store(at, a);
  }
}

/// dy = gate * dout for a chunk of an image's rows, and parts [B, chunks, D] = sums over them of dout * y.
template <class T>
__global__ void gated_add_backward(float* parts, T* dy, const T* dout, const T* y, const T* gate,
                                   RowLayout<3> layout, Vectors gates, std::int64_t tokens) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (i >= layout.width) return;
  const std::int64_t image = blockIdx.z, chunk = blockIdx.y, first = chunk * kColumnChunk;
  const std::int64_t last = first + kColumnChunk < tokens ? first + kColumnChunk : tokens;
  const float g = widen(gate[image * gates.row + i * gates.step]);
  float sum = 0;
  for (std::int64_t token = first; token < last; ++token) {
    std::int64_t offset[3];
    layout.rows.offsets(image * tokens + token, offset);
    const float d = widen(dout[offset[1] + i * layout.step[1]]);
    sum += d * widen(y[offset[2] + i * layout.step[2]]);
    dy[offset[0] + i * layout.step[0]] = narrow_to<T>(g * d);
  }
  parts[(image * gridDim.y + chunk) * layout.width + i] = sum;
}

}  // namespace

Declined CudaBackend::modulated_norm(const Tensor& out, const Tensor& mean, const Tensor& rstd,
                                     const Tensor& x, const Tensor& scale, const Tensor& shift, float eps) {
  enter("modulated_norm");
  with_activation("modulated_norm", x.dtype(), [&](auto type) {
    using T = decltype(type);
    launch_normalize<T, true>(*this, out, mean, rstd, x, eps, modulation<T>(x, scale, shift));
  });
  return {};
}

Declined CudaBackend::modulated_norm_backward(const Tensor& dx, const Tensor& dscale, const Tensor& dshift,
                                              const Tensor& dy, const Tensor& x, const Tensor& mean,
                                              const Tensor& rstd, const Tensor& scale) {
  enter("modulated_norm_backward");
  with_activation("modulated_norm_backward", x.dtype(), [&](auto type) {
    using T = decltype(type);
    const Modulate<T> twist = modulation<T>(x, scale, {});
    launch_column_sums<T, T>(*this, dscale, dshift, x, dy, mean, rstd, x.dim(0), twist);
    launch_normalize_backward<T, true>(*this, dx, x, dy, mean, rstd, twist);
  });
  return {};
}

Declined CudaBackend::gated_residual(const Tensor& out, const Tensor& x, const Tensor& gate,
                                     const Tensor& y) {
  enter("gated_residual");
  const RowLayout<3> layout = rows_of<3>({&out, &x, &y});
  if (layout.rows.total == 0) return {};
  with_activation("gated_residual", x.dtype(), [&](auto type) {
    using T = decltype(type);
    launch({.x = static_cast<unsigned>(layout.rows.total), .threads = kThreads}, gated_add<T>, out.data<T>(),
           x.data<T>(), y.data<T>(), gate.data<T>(), layout, Vectors{gate.strides()[0], gate.strides()[1]},
           x.dim(1));
  });
  return {};
}

Declined CudaBackend::gated_residual_backward(const Tensor& dgate, const Tensor& dy, const Tensor& dout,
                                              const Tensor& gate, const Tensor& y) {
  enter("gated_residual_backward");
  const RowLayout<3> layout = rows_of<3>({&dy, &dout, &y});
  const std::int64_t images = y.dim(0), tokens = y.dim(1), width = y.dim(2);
  const std::int64_t chunks = (tokens + kColumnChunk - 1) / kColumnChunk;
  const Tensor parts = empty({images, chunks, width});
  const Grid columns{.x = blocks_for(width, kColumnThreads), .threads = kColumnThreads};
  with_activation("gated_residual_backward", y.dtype(), [&](auto type) {
    using T = decltype(type);
    Grid grid = columns;
    grid.y = static_cast<unsigned>(chunks);
    grid.z = static_cast<unsigned>(images);
    launch(grid, gated_add_backward<T>, parts.data<float>(), dy.data<T>(), dout.data<T>(), y.data<T>(),
           gate.data<T>(), layout, Vectors{gate.strides()[0], gate.strides()[1]}, tokens);
    grid = columns;
    grid.y = static_cast<unsigned>(images);
    launch(grid, fold_column_parts<T>, dgate.data<T>(), dgate.strides()[0], dgate.strides()[1],
           parts.data<float>(), chunks, width);
  });
  return {};
}

Declined CudaBackend::qk_norm_rope(const Tensor& out, const Tensor& rstd, const Tensor& x,
                                   const Tensor& weight, const Tensor& cos, const Tensor& sin, float eps) {
  enter("qk_norm_rope");
  const Tensor scale = dense(weight), cosines = dense(cos), sines = dense(sin);
  const Turn turn{scale.data<float>(), cosines.data<float>(), sines.data<float>(), x.dim(1), x.dim(2),
                  x.dim(3) / 2};
  with_activation("qk_norm_rope", x.dtype(), [&](auto type) {
    launch_normalize<decltype(type), false>(*this, out, {}, rstd, x, eps, turn);
  });
  return {};
}

Declined CudaBackend::qk_norm_rope_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dout,
                                            const Tensor& x, const Tensor& rstd, const Tensor& weight,
                                            const Tensor& cos, const Tensor& sin) {
  enter("qk_norm_rope_backward");
  const Tensor scale = dense(weight), cosines = dense(cos), sines = dense(sin);
  const Turn turn{scale.data<float>(), cosines.data<float>(), sines.data<float>(), x.dim(1), x.dim(2),
                  x.dim(3) / 2};
  with_activation("qk_norm_rope_backward", x.dtype(), [&](auto type) {
    using T = decltype(type);
    if (dweight) launch_column_sums<T, float>(*this, dweight, {}, x, dout, {}, rstd, 1, turn);
    launch_normalize_backward<T, false>(*this, dx, x, dout, {}, rstd, turn);
  });
  return {};
}

void CudaBackend::rope(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin,
                       bool inverse) {
  enter("rope");
  const Layout<2> layout = layout_of<2>({&out, &x}, 0, 3);
  const std::int64_t half = x.dim(3) / 2;
  if (layout.total * half == 0) return;
  const Tensor cosines = dense(cos), sines = dense(sin);
  with_activation("rope", x.dtype(), [&](auto type) {
    using T = decltype(type);
    launch({.x = blocks_for(layout.total * half, kThreads), .threads = kThreads}, rope_pairs<T>,
           out.data<T>(), x.data<T>(), cosines.data<float>(), sines.data<float>(), layout, x.dim(1), x.dim(2),
           half, out.strides()[3], x.strides()[3], inverse ? -1.0f : 1.0f);
  });
}

}  // namespace danceflux::cuda
