// Convolution as a product with patches: where there is no cuDNN. B batch, C input channels, O output
// channels, h x w pixels, kh x kw window. Image after image, so that an image's result does not depend on the
// others.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/dnn.h"
#include "backend/cuda/layout.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;

struct ConvShape {
  std::int64_t channels, height, width;      // of x
  std::int64_t window_height, window_width;  // kh, kw
  std::int64_t out_height, out_width;        // oh, ow
  std::int64_t stride, pad_top, pad_left;
  std::int64_t patch() const { return channels * window_height * window_width; }
  std::int64_t pixels() const { return out_height * out_width; }
};

/// columns [C kh kw, oh ow] of x [C, h, w]; zero where the window hangs over the edge.
template <class T>
__global__ void image_to_columns(T* columns, const T* x, ConvShape s, std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= total) return;
  const std::int64_t column = i % s.out_width, row = i / s.out_width % s.out_height;
  const std::int64_t entry = i / (s.out_width * s.out_height), v = entry % s.window_width,
                     u = entry / s.window_width % s.window_height,
                     c = entry / (s.window_width * s.window_height);
  const std::int64_t y = row * s.stride + u - s.pad_top, z = column * s.stride + v - s.pad_left;
  const bool inside = y >= 0 && y < s.height && z >= 0 && z < s.width;
  columns[i] = inside ? x[(c * s.height + y) * s.width + z] : narrow_to<T>(0.0f);
}

/// The gradient of that: each pixel gathers what its windows have, in the order of the window's entries.
template <class T>
__global__ void columns_to_image(T* dx, const T* columns, ConvShape s, std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= total) return;
  const std::int64_t z = i % s.width, y = i / s.width % s.height, c = i / (s.width * s.height);
  float sum = 0;
  for (std::int64_t u = 0; u < s.window_height; ++u) {
    const std::int64_t down = y + s.pad_top - u;
    if (down < 0 || down % s.stride != 0 || down / s.stride >= s.out_height) continue;
    for (std::int64_t v = 0; v < s.window_width; ++v) {
      const std::int64_t across = z + s.pad_left - v;
      if (across < 0 || across % s.stride != 0 || across / s.stride >= s.out_width) continue;
      const std::int64_t entry = (c * s.window_height + u) * s.window_width + v;
      sum += widen(columns[(entry * s.out_height + down / s.stride) * s.out_width + across / s.stride]);
    }
  }
  dx[i] = narrow_to<T>(sum);
}

/// out [O, pixels] += bias [O]
template <class T>
__global__ void add_channel_bias(T* out, const float* bias, std::int64_t pixels, std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < total) out[i] = narrow_to<T>(widen(out[i]) + bias[i / pixels]);
}

ConvShape shape_of(const Tensor& x, const Shape& weight, const Tensor& out, const ConvArgs& args) {
  return {x.dim(1),   x.dim(2),   x.dim(3),    weight[2],    weight[3],
          out.dim(2), out.dim(3), args.stride, args.pad_top, args.pad_left};
}

/// The window is one pixel and nothing is skipped or padded: the image is its own patches.
bool is_plain(const ConvShape& s) {
  return s.window_height == 1 && s.window_width == 1 && s.stride == 1 && s.out_height == s.height &&
         s.out_width == s.width;
}

/// Image b of x [B, C, h, w] as [C, h w].
Tensor image_of(const Tensor& x, std::int64_t b) {
  return x.narrow(0, b, 1).view({x.dim(1), x.dim(2) * x.dim(3)});
}

Tensor patches_of(CudaBackend& device, const Tensor& x, std::int64_t b, const ConvShape& s, Tensor& columns) {
  const Tensor image = image_of(x, b);
  if (is_plain(s)) return image;
  const std::int64_t total = s.patch() * s.pixels();
  if (!columns.defined()) columns = device.empty({s.patch(), s.pixels()}, x.dtype());
  with_activation("conv2d", x.dtype(), [&](auto type) {
    using T = decltype(type);
    device.launch({.x = blocks_for(total, kThreads), .threads = kThreads}, image_to_columns<T>,
                  columns.data<T>(), static_cast<const T*>(image.address()), s, total);
  });
  return columns;
}

}  // namespace

void CudaBackend::conv2d(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                         const ConvArgs& args) {
  enter("conv2d");
  if (out.numel() == 0) return;
  const ConvShape s = shape_of(x, weight.shape(), out, args);
  const Tensor kernel = as_operand(weight.view({weight.dim(0), s.patch()}), x.dtype()), shift = dense(bias);
  Tensor columns;
  const bool done = dnn_ && dnn_->conv(ConvPass::forward, x, kernel.view(weight.shape()), out, args);
  for (std::int64_t b = 0; b < x.dim(0); ++b) {
    const Tensor to = image_of(out, b);
    if (!done) matmul(to, kernel, patches_of(*this, x, b, s, columns), {}, {});
    enter("conv2d");
    if (!shift.defined()) continue;
    with_activation("conv2d", out.dtype(), [&](auto type) {
      using T = decltype(type);
      launch({.x = blocks_for(to.numel(), kThreads), .threads = kThreads}, add_channel_bias<T>, to.data<T>(),
             shift.data<float>(), s.pixels(), to.numel());
    });
  }
}

void CudaBackend::conv2d_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                                       const ConvArgs& args) {
  enter("conv2d_backward_data");
  if (dx.numel() == 0) return;
  const ConvShape s = shape_of(dx, weight.shape(), dy, args);
  const Tensor kernel = as_operand(weight.view({weight.dim(0), s.patch()}), dy.dtype());
  if (dnn_ && dy.numel() > 0 && dnn_->conv(ConvPass::data, dx, kernel.view(weight.shape()), dy, args)) return;
  if (is_plain(s)) {
    for (std::int64_t b = 0; b < dx.dim(0); ++b)
      matmul(image_of(dx, b), kernel.transpose(0, 1), image_of(dy, b), {}, {});
    return;
  }
  const Tensor columns = empty({s.patch(), s.pixels()}, dx.dtype());
  for (std::int64_t b = 0; b < dx.dim(0); ++b) {
    matmul(columns, kernel.transpose(0, 1), image_of(dy, b), {}, {});
    enter("conv2d_backward_data");
    const Tensor to = image_of(dx, b);
    with_activation("conv2d_backward_data", dx.dtype(), [&](auto type) {
      using T = decltype(type);
      launch({.x = blocks_for(to.numel(), kThreads), .threads = kThreads}, columns_to_image<T>, to.data<T>(),
             columns.data<T>(), s, to.numel());
    });
  }
}

void CudaBackend::conv2d_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                                         const Tensor& x, const ConvArgs& args) {
  enter("conv2d_backward_weight");
  const ConvShape s = shape_of(x, dweight.shape(), dy, args);
  const Tensor kernel = dweight.view({dweight.dim(0), s.patch()});
  if (dbias.defined()) reduce(ReduceOp::sum, dbias.view({1, dbias.dim(0), 1, 1}), dy);
  if (x.dim(0) == 0) return fill(dweight, 0);
  if (dnn_ && dnn_->conv(ConvPass::weight, x, dweight, dy, args)) return;
  Tensor columns;
  for (std::int64_t b = 0; b < x.dim(0); ++b)
    matmul(kernel, image_of(dy, b), patches_of(*this, x, b, s, columns).transpose(0, 1), {},
           {.accumulate = b > 0});
}

}  // namespace danceflux::cuda
