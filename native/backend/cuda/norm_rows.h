// Norms along the last axis, and what is fused with them: one kernel forward and one backward, told by a
// small struct what to do with a normalised element. Included by the .cu files that have such a struct.
//
// A "twist" is what comes after the norm: y = twist(normed). It says how a pack of one row is twisted, and
// how a pack of dy becomes the gradient of the normed ones.
#pragma once
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/layout.h"

namespace danceflux::cuda {

template <class T>
constexpr int kPack = Pack<T>::kCount;

// ---- forward
// ----------------------------------------------------------------------------------------------------------

template <class T, int kTeam, bool kCentred, class Twist>
__global__ void normalize_rows(T* out, float* mean, float* rstd, const T* x, RowLayout<2> layout, float eps,
                               Twist twist) {
  __shared__ float parts[kWarp];
  using Team = RowTeam<kTeam>;
  const std::int64_t row = Team::row();
  if (row >= layout.rows.total) return;
  std::int64_t offset[2];
  layout.rows.offsets(row, offset);
  const Row<const T> from{x + offset[1], layout.step[1], layout.width, layout.packs};
  const Row<T> to{out + offset[0], layout.step[0], layout.width, layout.packs};
  const float count = static_cast<float>(layout.width);
  const std::int64_t first = Team::lane() * kPack<T>;
  float v[kPack<T>], centre = 0;
  if (kCentred) {
    float sum = 0;
    for (std::int64_t at = first; at < layout.width; at += kTeam * kPack<T>) {
      from.load(at, v);
      for (int j = 0; j < kPack<T>; ++j) sum += v[j];
    }
    centre = Team::template fold<Sum>(sum, parts) / count;
  }
  float squares = 0;
  for (std::int64_t at = first; at < layout.width; at += kTeam * kPack<T>) {
    from.load(at, v, centre);
    for (int j = 0; j < kPack<T>; ++j) squares += (v[j] - centre) * (v[j] - centre);
  }
  const float scale = 1.0f / sqrtf(Team::template fold<Sum>(squares, parts) / count + eps);
  for (std::int64_t at = first; at < layout.width; at += kTeam * kPack<T>) {
    from.load(at, v);
    for (int j = 0; j < kPack<T>; ++j) v[j] = (v[j] - centre) * scale;
    twist.forward(row, at, layout.width, v);
    to.store(at, v);
  }
  if (Team::lane() == 0) {
    rstd[row] = scale;
    if (kCentred) mean[row] = centre;
  }
}

template <class T, bool kCentred, class Twist>
void launch_normalize(CudaBackend& device, const Tensor& out, const Tensor& mean, const Tensor& rstd,
                      const Tensor& x, float eps, const Twist& twist) {
  const RowLayout<2> layout = rows_of<2>({&out, &x});
  if (layout.rows.total == 0) return;
  const bool block = layout.width > 256;
  device.launch(
      {.x = blocks_for(layout.rows.total, block ? 1 : kRowBlock / kWarp), .threads = kRowBlock},
      block ? normalize_rows<T, kRowBlock, kCentred, Twist> : normalize_rows<T, kWarp, kCentred, Twist>,
      out.data<T>(), mean.defined() ? mean.data<float>() : nullptr, rstd.data<float>(),
      static_cast<const T*>(x.address()), layout, eps, twist);
}

// ---- dx
// ---------------------------------------------------------------------------------------------------------------

template <class T, int kTeam, bool kCentred, class Twist>
__global__ void normalize_rows_backward(T* dx, const T* x, const T* dy, const float* mean, const float* rstd,
                                        RowLayout<3> layout, Twist twist) {
  __shared__ float parts[kWarp];
  using Team = RowTeam<kTeam>;
  const std::int64_t row = Team::row();
  if (row >= layout.rows.total) return;
  std::int64_t offset[3];
  layout.rows.offsets(row, offset);
  const Row<T> to{dx + offset[0], layout.step[0], layout.width, layout.packs};
  const Row<const T> from{x + offset[1], layout.step[1], layout.width, layout.packs};
  const Row<const T> above{dy + offset[2], layout.step[2], layout.width, layout.packs};
  const float count = static_cast<float>(layout.width), scale = rstd[row],
              centre = kCentred ? mean[row] : 0.0f;
  const std::int64_t first = Team::lane() * kPack<T>;
  float v[kPack<T>], d[kPack<T>], sum = 0, dot = 0;
  for (std::int64_t at = first; at < layout.width; at += kTeam * kPack<T>) {
    from.load(at, v);
    above.load(at, d);
    twist.backward(row, at, layout.width, d);
    for (int j = 0; j < kPack<T>; ++j) {
      sum += d[j];
      dot += d[j] * ((v[j] - centre) * scale);
    }
  }
  sum = kCentred ? Team::template fold<Sum>(sum, parts) / count : 0.0f;
  dot = Team::template fold<Sum>(dot, parts) / count;
  for (std::int64_t at = first; at < layout.width; at += kTeam * kPack<T>) {
    from.load(at, v);
    above.load(at, d);
    twist.backward(row, at, layout.width, d);
    for (int j = 0; j < kPack<T>; ++j) v[j] = norm_slope(d[j], (v[j] - centre) * scale, scale, sum, dot);
    to.store(at, v);
  }
}

template <class T, bool kCentred, class Twist>
void launch_normalize_backward(CudaBackend& device, const Tensor& dx, const Tensor& x, const Tensor& dy,
                               const Tensor& mean, const Tensor& rstd, const Twist& twist) {
  const RowLayout<3> layout = rows_of<3>({&dx, &x, &dy});
  if (layout.rows.total == 0) return;
  const bool block = layout.width > 256;
  device.launch({.x = blocks_for(layout.rows.total, block ? 1 : kRowBlock / kWarp), .threads = kRowBlock},
                block ? normalize_rows_backward<T, kRowBlock, kCentred, Twist>
                      : normalize_rows_backward<T, kWarp, kCentred, Twist>,
                dx.data<T>(), static_cast<const T*>(x.address()), static_cast<const T*>(dy.address()),
                kCentred ? mean.data<float>() : nullptr, rstd.data<float>(), layout, twist);
}

// ---- what belongs to columns: sums over rows of dy and of dy * normed
// ---------------------------------------------------

constexpr std::int64_t kColumnChunk = 64;
constexpr int kColumnThreads = 128;

/// parts [2, images, chunks, D]: first dy * normed, then dy, both as twist.plain sees dy.
template <class T, class Twist>
__global__ void column_parts(float* parts, const T* x, const T* dy, const float* mean, const float* rstd,
                             RowLayout<2> layout, std::int64_t rows_per_image, Twist twist) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (i >= layout.width) return;
  const std::int64_t image = blockIdx.z, chunk = blockIdx.y;
  const std::int64_t first = image * rows_per_image + chunk * kColumnChunk,
                     end = (image + 1) * rows_per_image;
  const std::int64_t last = first + kColumnChunk < end ? first + kColumnChunk : end;
  float with_normed = 0, plain = 0;
  for (std::int64_t row = first; row < last; ++row) {
    std::int64_t offset[2];
    layout.rows.offsets(row, offset);
    const float d = twist.plain(row, i, dy + offset[1], layout.step[1]);
    const float centre = mean ? mean[row] : 0.0f;
    with_normed += d * ((widen(x[offset[0] + i * layout.step[0]]) - centre) * rstd[row]);
    plain += d;
  }
  const std::int64_t at = (image * gridDim.y + chunk) * layout.width + i;
  parts[at] = with_normed;
  parts[std::int64_t{gridDim.z} * gridDim.y * layout.width + at] = plain;
}

/// out [images, D] = sum of parts [images, chunks, D] over the chunks, in their order.
template <class T>
__global__ void fold_column_parts(T* out, std::int64_t image_step, std::int64_t step, const float* parts,
                                  std::int64_t chunks, std::int64_t width) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x, image = blockIdx.y;
  if (i >= width) return;
  float sum = 0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += parts[(image * chunks + chunk) * width + i];
  out[image * image_step + i * step] = narrow_to<T>(sum);
}

/// with_normed and plain [images, D] or [D], of any strides; either may be undefined.
template <class T, class To, class Twist>
void launch_column_sums(CudaBackend& device, const Tensor& with_normed, const Tensor& plain, const Tensor& x,
                        const Tensor& dy, const Tensor& mean, const Tensor& rstd, std::int64_t images,
                        const Twist& twist) {
  const RowLayout<2> layout = rows_of<2>({&x, &dy});
  const std::int64_t rows = layout.rows.total / (images ? images : 1), width = layout.width;
  if (images == 0) return;
  const std::int64_t chunks = (rows + kColumnChunk - 1) / kColumnChunk;
  const Tensor parts = device.empty({2, images, chunks, width});
  if (rows > 0)
    device.launch({.x = blocks_for(width, kColumnThreads),
                   .y = static_cast<unsigned>(chunks),
                   .z = static_cast<unsigned>(images),
                   .threads = kColumnThreads},
                  column_parts<T, Twist>, parts.data<float>(), static_cast<const T*>(x.address()),
                  static_cast<const T*>(dy.address()), mean.defined() ? mean.data<float>() : nullptr,
                  rstd.data<float>(), layout, rows, twist);
  for (const Tensor* out : {&with_normed, &plain}) {
    if (!out->defined()) continue;
    const float* from = parts.data<float>() + (out == &plain ? images * chunks * width : 0);
    device.launch({.x = blocks_for(width, kColumnThreads),
                   .y = static_cast<unsigned>(images),
                   .threads = kColumnThreads},
                  fold_column_parts<To>, out->data<To>(), out->rank() > 1 ? out->strides()[0] : 0,
                  out->strides()[-1], from, chunks, width);
  }
}

}  // namespace danceflux::cuda
