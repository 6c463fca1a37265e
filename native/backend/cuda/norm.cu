// Norms of rows and of groups. D width, B batch, C channels, G groups, S pixels of a channel.
#include "backend/cuda/norm_rows.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

/// y = normed * weight + bias, both by column and either absent.
struct Affine {
  const float *weight, *bias;
  template <int kCount>
  DF_DEVICE void forward(std::int64_t, std::int64_t at, std::int64_t width, float (&v)[kCount]) const {
    for (int j = 0; j < kCount; ++j) {
      if (at + j >= width) return;
      if (weight) v[j] *= weight[at + j];
      if (bias) v[j] += bias[at + j];
    }
  }
  template <int kCount>
  DF_DEVICE void backward(std::int64_t, std::int64_t at, std::int64_t width, float (&d)[kCount]) const {
    for (int j = 0; j < kCount; ++j)
      if (weight && at + j < width) d[j] *= weight[at + j];
  }
  template <class T>
  DF_DEVICE float plain(std::int64_t, std::int64_t i, const T* dy, std::int64_t step) const {
    return widen(dy[i * step]);
  }
};

const float* vector_of(const Tensor& x) {
  return x.defined() ? static_cast<const float*>(x.address()) : nullptr;
}

// ---- groups: statistics of fixed pieces, joined in their order
// -----------------------------------------------------------

constexpr int kThreads = 256;
constexpr std::int64_t kPiece = 8192;

/// parts [groups, pieces, 2]: mean and sum of squared deviations.
template <class T>
__global__ void group_parts(float* parts, const T* x, std::int64_t size) {
  __shared__ float shared[kWarp];
  const std::int64_t first = blockIdx.x * kPiece, last = first + kPiece < size ? first + kPiece : size;
  const T* from = x + blockIdx.y * size;
  const float count = static_cast<float>(last - first);
  float sum = 0, squares = 0;
  for (std::int64_t i = first + threadIdx.x; i < last; i += kThreads) sum += widen(from[i]);
  const float mean = fold_block<Sum>(sum, shared) / count;
  for (std::int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    const float deviation = widen(from[i]) - mean;
    squares += deviation * deviation;
  }
  squares = fold_block<Sum>(squares, shared);
  if (threadIdx.x == 0) {
    float* to = parts + (std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * 2;
    to[0] = mean;
    to[1] = squares;
  }
}

/// Chan, Golub and LeVeque (1979): two pieces' means and sums of squared deviations make the whole's.
__global__ void join_group_parts(float* mean, float* rstd, const float* parts, std::int64_t groups,
                                 std::int64_t pieces, std::int64_t size, float eps) {
  const std::int64_t group = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (group >= groups) return;
  const float* from = parts + group * pieces * 2;
  double centre = from[0], squares = from[1], count = static_cast<double>(kPiece < size ? kPiece : size);
  for (std::int64_t piece = 1; piece < pieces; ++piece) {
    const std::int64_t rest = size - piece * kPiece;
    const double more = static_cast<double>(rest < kPiece ? rest : kPiece), whole = count + more;
    const double apart = from[piece * 2] - centre;
    centre += apart * more / whole;
    squares += from[piece * 2 + 1] + apart * apart * count * more / whole;
    count = whole;
  }
  mean[group] = static_cast<float>(centre);
  rstd[group] = static_cast<float>(1.0 / sqrt(squares / count + static_cast<double>(eps)));
}

struct GroupShape {
  std::int64_t channels, pixels, channels_per_group;
};

template <class T, bool kSilu>
__global__ void group_apply(T* out, const T* x, const float* mean, const float* rstd, Affine affine,
                            GroupShape shape, std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= total) return;
  const std::int64_t channel = i / shape.pixels, group = channel / shape.channels_per_group;
  const std::int64_t c = channel % shape.channels;
  float y = (widen(x[i]) - mean[group]) * rstd[group];
  if (affine.weight) y *= affine.weight[c];
  if (affine.bias) y += affine.bias[c];
  out[i] = narrow_to<T>(kSilu ? silu_op::value(y, 0, 0) : y);
}

/// sums [B * C, 2]: of dy and of dy * normed over a channel's pixels.
template <class T>
__global__ void channel_sums(float* sums, const T* x, const T* dy, const float* mean, const float* rstd,
                             GroupShape shape) {
  __shared__ float shared[kWarp];
  const std::int64_t channel = blockIdx.x, group = channel / shape.channels_per_group;
  const T *from = x + channel * shape.pixels, *above = dy + channel * shape.pixels;
  float plain = 0, with_normed = 0;
  for (std::int64_t i = threadIdx.x; i < shape.pixels; i += kThreads) {
    const float d = widen(above[i]);
    plain += d;
    with_normed += d * ((widen(from[i]) - mean[group]) * rstd[group]);
  }
  plain = fold_block<Sum>(plain, shared);
  with_normed = fold_block<Sum>(with_normed, shared);
  if (threadIdx.x == 0) {
    sums[channel * 2] = plain;
    sums[channel * 2 + 1] = with_normed;
  }
}

/// means [B * G, 2] of weight * dy and weight * dy * normed; a thread for each group.
__global__ void group_means(float* means, const float* sums, const float* weight, GroupShape shape,
                            std::int64_t groups) {
  const std::int64_t group = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (group >= groups) return;
  float plain = 0, with_normed = 0;
  for (std::int64_t k = 0; k < shape.channels_per_group; ++k) {
    const std::int64_t channel = group * shape.channels_per_group + k;
    const float w = weight ? weight[channel % shape.channels] : 1.0f;
    plain += w * sums[channel * 2];
    with_normed += w * sums[channel * 2 + 1];
  }
  const float count = static_cast<float>(shape.channels_per_group * shape.pixels);
  means[group * 2] = plain / count;
  means[group * 2 + 1] = with_normed / count;
}

__global__ void channel_gradients(float* dweight, float* dbias, const float* sums, std::int64_t images,
                                  std::int64_t channels) {
  const std::int64_t c = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= channels) return;
  float plain = 0, with_normed = 0;
  for (std::int64_t b = 0; b < images; ++b) {
    plain += sums[(b * channels + c) * 2];
    with_normed += sums[(b * channels + c) * 2 + 1];
  }
  if (dweight) dweight[c] = with_normed;
  if (dbias) dbias[c] = plain;
}

template <class T>
__global__ void group_backward(T* dx, const T* x, const T* dy, const float* mean, const float* rstd,
                               const float* means, const float* weight, GroupShape shape,
                               std::int64_t total) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= total) return;
  const std::int64_t channel = i / shape.pixels, group = channel / shape.channels_per_group;
  const float w = weight ? weight[channel % shape.channels] : 1.0f;
  const float normed = (widen(x[i]) - mean[group]) * rstd[group];
  dx[i] =
      narrow_to<T>(norm_slope(w * widen(dy[i]), normed, rstd[group], means[group * 2], means[group * 2 + 1]));
}

GroupShape shape_of(const Tensor& x, const NormArgs& args) {
  const std::int64_t images = x.dim(0), channels = x.dim(1);
  return {channels, images && channels ? x.numel() / images / channels : 0, channels / args.groups};
}

}  // namespace

void CudaBackend::norm(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                       const Tensor& weight, const Tensor& bias, const NormArgs& args) {
  enter("norm");
  if (args.kind == NormKind::group) return norm_groups(out, mean, rstd, x, weight, bias, args, false);
  norm_rows(out, mean, rstd, x, weight, bias, args);
}

void CudaBackend::norm_rows(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                            const Tensor& weight, const Tensor& bias, const NormArgs& args) {
  const Tensor scale = dense(weight), shift = dense(bias);
  const Affine affine{vector_of(scale), vector_of(shift)};
  with_activation("norm", x.dtype(), [&](auto type) {
    using T = decltype(type);
    if (args.kind == NormKind::layer) {
      launch_normalize<T, true>(*this, out, mean, rstd, x, args.eps, affine);
    } else {
      launch_normalize<T, false>(*this, out, {}, rstd, x, args.eps, affine);
    }
  });
}

void CudaBackend::norm_groups(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                              const Tensor& weight, const Tensor& bias, const NormArgs& args, bool silu) {
  if (x.numel() == 0) return;
  const GroupShape shape = shape_of(x, args);
  const std::int64_t groups = x.dim(0) * args.groups, size = shape.channels_per_group * shape.pixels;
  const std::int64_t pieces = (size + kPiece - 1) / kPiece;
  const Tensor parts = empty({groups, pieces, 2}), scale = dense(weight), shift = dense(bias);
  const Affine affine{vector_of(scale), vector_of(shift)};
  with_activation("norm", x.dtype(), [&](auto type) {
    using T = decltype(type);
    launch({.x = static_cast<unsigned>(pieces), .y = static_cast<unsigned>(groups), .threads = kThreads},
           group_parts<T>, parts.data<float>(), static_cast<const T*>(x.address()), size);
    launch({.x = blocks_for(groups, kThreads), .threads = kThreads}, join_group_parts, mean.data<float>(),
           rstd.data<float>(), parts.data<float>(), groups, pieces, size, args.eps);
    launch({.x = blocks_for(x.numel(), kThreads), .threads = kThreads},
           silu ? group_apply<T, true> : group_apply<T, false>, out.data<T>(),
           static_cast<const T*>(x.address()), mean.data<float>(), rstd.data<float>(), affine, shape,
           x.numel());
  });
}

Declined CudaBackend::group_norm_silu(const Tensor& out, const Tensor& mean, const Tensor& rstd,
                                      const Tensor& x, const Tensor& weight, const Tensor& bias,
                                      const NormArgs& args) {
  enter("group_norm_silu");
  norm_groups(out, mean, rstd, x, weight, bias, args, true);
  return {};
}

void CudaBackend::norm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias,
                                const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                const Tensor& weight, const NormArgs& args) {
  enter("norm_backward");
  if (args.kind == NormKind::group)
    return norm_groups_backward(dx, dweight, dbias, dy, x, mean, rstd, weight, args);
  const Tensor scale = dense(weight);
  const Affine affine{vector_of(scale), nullptr};
  with_activation("norm_backward", x.dtype(), [&](auto type) {
    using T = decltype(type);
    if (dweight || dbias) {
      launch_column_sums<T, float>(*this, dweight, dbias, x, dy, args.kind == NormKind::rms ? Tensor() : mean,
                                   rstd, 1, affine);
    }
    if (args.kind == NormKind::layer) {
      launch_normalize_backward<T, true>(*this, dx, x, dy, mean, rstd, affine);
    } else {
      launch_normalize_backward<T, false>(*this, dx, x, dy, {}, rstd, affine);
    }
  });
}

void CudaBackend::norm_groups_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias,
                                       const Tensor& dy, const Tensor& x, const Tensor& mean,
                                       const Tensor& rstd, const Tensor& weight, const NormArgs& args) {
  if (x.numel() == 0) {
    if (dweight) fill(dweight, 0);
    if (dbias) fill(dbias, 0);
    return;
  }
  const GroupShape shape = shape_of(x, args);
  const std::int64_t groups = x.dim(0) * args.groups, all_channels = x.dim(0) * shape.channels;
  const Tensor sums = empty({all_channels, 2}), means = empty({groups, 2}), scale = dense(weight);
  with_activation("norm_backward", x.dtype(), [&](auto type) {
    using T = decltype(type);
    const T *from = static_cast<const T*>(x.address()), *above = static_cast<const T*>(dy.address());
    launch({.x = static_cast<unsigned>(all_channels), .threads = kThreads}, channel_sums<T>,
           sums.data<float>(), from, above, mean.data<float>(), rstd.data<float>(), shape);
    launch({.x = blocks_for(groups, kThreads), .threads = kThreads}, group_means, means.data<float>(),
           sums.data<float>(), vector_of(scale), shape, groups);
    if (dweight || dbias) {
      launch({.x = blocks_for(shape.channels, kThreads), .threads = kThreads}, channel_gradients,
             dweight ? dweight.data<float>() : nullptr, dbias ? dbias.data<float>() : nullptr,
             sums.data<float>(), x.dim(0), shape.channels);
    }
    launch({.x = blocks_for(x.numel(), kThreads), .threads = kThreads}, group_backward<T>, dx.data<T>(), from,
           above, mean.data<float>(), rstd.data<float>(), means.data<float>(), vector_of(scale), shape,
           x.numel());
  });
}

}  // namespace danceflux::cuda
