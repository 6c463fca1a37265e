// Attention without a score matrix, for any head width up to 512, in f32 arithmetic: where there are neither
// tensor-core kernels nor cuDNN for it. One warp works on a query; each lane has a key of the tile while
// scores are made, and some columns of the head while values are added up. Keys come in their order, so
// nothing depends on the batch.
#include "backend/cuda/attention.h"
#include "backend/cuda/dnn.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr std::int64_t kMaxWidth = 512;

/// Rows first .. first+31 of a head as f32 in shared memory, [32][width + 1]; rows from `count` on are zero.
template <class T>
DF_DEVICE void load_tile(float* tile, const HeadRows<const T>& rows, std::int64_t b, std::int64_t h,
                         std::int64_t first, std::int64_t count, int width) {
  for (int i = static_cast<int>(threadIdx.x); i < kWarp * width; i += kThreads) {
    const int row = i / width, column = i % width;
    tile[row * (width + 1) + column] =
        first + row < count ? widen(rows.row(b, h, first + row)[column]) : 0.0f;
  }
}
/// One row by one warp.
template <class T>
DF_DEVICE void load_row(float* to, const T* row, int width, bool inside) {
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < width; i += kWarp)
    to[i] = inside ? widen(row[i]) : 0.0f;
}
DF_DEVICE float dot(const float* a, const float* b, int width) {
  float sum = 0;
  for (int i = 0; i < width; ++i) sum += a[i] * b[i];
  return sum;
}

/// The score of query i and key j before softmax; -inf where it is masked or there is no such key.
template <class T>
DF_DEVICE float score(float product, const AttentionShape& s, const ScoreBias<T>& bias, std::int64_t b,
                      std::int64_t h, std::int64_t i, std::int64_t j) {
  if (j >= s.keys || i >= s.queries || (s.causal && j > i)) return -INFINITY;
  float value = product * s.scale;
  if (bias.base) value += widen(bias.base[b * bias.batch + h * bias.head + i * bias.query + j * bias.key]);
  return value;
}

/// kColumns: columns of a head that a lane has, at most. kPerWarp: queries of a warp.
template <class T, int kColumns, int kPerWarp>
__global__ void attention_forward(HeadRows<T> out, float* lse, HeadRows<const T> q, HeadRows<const T> k,
                                  HeadRows<const T> v, ScoreBias<T> bias, AttentionShape s) {
  const int width = static_cast<int>(s.width), warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  auto* tile = reinterpret_cast<float*>(dynamic_shared());
  float* queries = tile + kWarp * (width + 1) + warp * kPerWarp * width;
  const std::int64_t b = blockIdx.z, h = blockIdx.y,
                     first = (std::int64_t{blockIdx.x} * kWarps + warp) * kPerWarp;
  float sum[kPerWarp], highest[kPerWarp], total[kPerWarp][kColumns], weight[kPerWarp];
  for (int n = 0; n < kPerWarp; ++n) {
    load_row(queries + n * width, q.row(b, h, first + n), width, first + n < s.queries);
    sum[n] = 0;
    highest[n] = -INFINITY;
    for (int c = 0; c < kColumns; ++c) total[n][c] = 0;
  }
  for (std::int64_t key = 0; key < s.keys; key += kWarp) {
    __syncthreads();
    load_tile(tile, k, b, h, key, s.keys, width);
    __syncthreads();
    for (int n = 0; n < kPerWarp; ++n) {
      const float x = score(dot(queries + n * width, tile + lane * (width + 1), width), s, bias, b, h,
                            first + n, key + lane);
      const float best = fmaxf(highest[n], fold_warp<Max>(x));
      const float base = best == -INFINITY ? 0.0f : best, shrink = expf(highest[n] - base);
      weight[n] = expf(x - base);
      sum[n] = sum[n] * shrink + fold_warp<Sum>(weight[n]);
      highest[n] = best;
      for (int c = 0; c < kColumns; ++c) total[n][c] *= shrink;
    }
    __syncthreads();
    load_tile(tile, v, b, h, key, s.keys, width);
    __syncthreads();
    for (int n = 0; n < kPerWarp; ++n)
      for (int j = 0; j < kWarp; ++j) {
        const float p = __shfl_sync(kAllLanes, weight[n], j);
        for (int c = 0; c < kColumns; ++c) {
          const int column = c * kWarp + lane;
          if (column < width) total[n][c] += p * tile[j * (width + 1) + column];
        }
      }
  }
  for (int n = 0; n < kPerWarp; ++n) {
    const std::int64_t i = first + n;
    if (i >= s.queries) return;
    const float scale = sum[n] == 0 ? 0.0f : 1.0f / sum[n];
    for (int c = 0; c < kColumns; ++c) {
      const int column = c * kWarp + lane;
      if (column < width) out.row(b, h, i)[column] = narrow_to<T>(total[n][c] * scale);
    }
    if (lane == 0)
      lse[(b * s.heads + h) * s.queries + i] = sum[n] == 0 ? -INFINITY : highest[n] + logf(sum[n]);
  }
}

/// delta [B, H, Lq] = sum over the head of dout * out; a warp for each.
template <class T>
__global__ void attention_delta(float* delta, HeadRows<const T> dout, HeadRows<const T> out,
                                AttentionShape s) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, b = blockIdx.z,
                     h = blockIdx.y;
  if (i >= s.queries) return;
  const T *above = dout.row(b, h, i), *value = out.row(b, h, i);
  float sum = 0;
  for (std::int64_t c = threadIdx.x % kWarp; c < s.width; c += kWarp)
    sum += widen(above[c]) * widen(value[c]);
  sum = fold_warp<Sum>(sum);
  if (threadIdx.x % kWarp == 0) delta[(b * s.heads + h) * s.queries + i] = sum;
}

DF_DEVICE float probability(float x, float lse) { return lse == -INFINITY ? 0.0f : expf(x - lse); }

/// dq; a query to a warp, keys in tiles.
template <class T, int kColumns>
__global__ void attention_dq(HeadRows<T> dq, HeadRows<const T> dout, HeadRows<const T> q, HeadRows<const T> k,
                             HeadRows<const T> v, ScoreBias<T> bias, const float* lse, const float* delta,
                             AttentionShape s) {
  const int width = static_cast<int>(s.width), warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  auto* tile = reinterpret_cast<float*>(dynamic_shared());
  float *query = tile + kWarp * (width + 1) + warp * 2 * width, *above = query + width;
  const std::int64_t b = blockIdx.z, h = blockIdx.y, i = std::int64_t{blockIdx.x} * kWarps + warp;
  const bool inside = i < s.queries;
  load_row(query, q.row(b, h, i), width, inside);
  load_row(above, dout.row(b, h, i), width, inside);
  const std::int64_t row = (b * s.heads + h) * s.queries + i;
  const float log_sum = inside ? lse[row] : -INFINITY, share = inside ? delta[row] : 0.0f;
  float total[kColumns] = {};
  for (std::int64_t key = 0; key < s.keys; key += kWarp) {
    __syncthreads();
    load_tile(tile, v, b, h, key, s.keys, width);
    __syncthreads();
    const float dp = dot(above, tile + lane * (width + 1), width);
    __syncthreads();
    load_tile(tile, k, b, h, key, s.keys, width);
    __syncthreads();
    const float x = score(dot(query, tile + lane * (width + 1), width), s, bias, b, h, i, key + lane);
    const float ds = probability(x, log_sum) * (dp - share) * s.scale;
    for (int j = 0; j < kWarp; ++j) {
      const float d = __shfl_sync(kAllLanes, ds, j);
      for (int c = 0; c < kColumns; ++c) {
        const int column = c * kWarp + lane;
        if (column < width) total[c] += d * tile[j * (width + 1) + column];
      }
    }
  }
  if (!inside) return;
  for (int c = 0; c < kColumns; ++c) {
    const int column = c * kWarp + lane;
    if (column < width) dq.row(b, h, i)[column] = narrow_to<T>(total[c]);
  }
}

/// dk and dv; a key to a warp, queries in tiles.
template <class T, int kColumns>
__global__ void attention_dkv(HeadRows<T> dk, HeadRows<T> dv, HeadRows<const T> dout, HeadRows<const T> q,
                              HeadRows<const T> k, HeadRows<const T> v, ScoreBias<T> bias, const float* lse,
                              const float* delta, AttentionShape s) {
  const int width = static_cast<int>(s.width), warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  auto* tile = reinterpret_cast<float*>(dynamic_shared());
  float *own_key = tile + kWarp * (width + 1) + warp * 2 * width, *own_value = own_key + width;
  const std::int64_t b = blockIdx.z, h = blockIdx.y, j = std::int64_t{blockIdx.x} * kWarps + warp;
  const bool inside = j < s.keys;
  load_row(own_key, k.row(b, h, j), width, inside);
  load_row(own_value, v.row(b, h, j), width, inside);
  float key_sum[kColumns] = {}, value_sum[kColumns] = {};
  const auto add = [&](float(&sum)[kColumns], float factor) {
    for (int n = 0; n < kWarp; ++n) {
      const float d = __shfl_sync(kAllLanes, factor, n);
      for (int c = 0; c < kColumns; ++c) {
        const int column = c * kWarp + lane;
        if (column < width) sum[c] += d * tile[n * (width + 1) + column];
      }
    }
  };
  for (std::int64_t first = 0; first < s.queries; first += kWarp) {
    const std::int64_t i = first + lane, row = (b * s.heads + h) * s.queries + i;
    __syncthreads();
    load_tile(tile, q, b, h, first, s.queries, width);
    __syncthreads();
    const float x = score(dot(own_key, tile + lane * (width + 1), width), s, bias, b, h, i, j);
    const float p = probability(x, i < s.queries ? lse[row] : -INFINITY);
    __syncthreads();
    load_tile(tile, dout, b, h, first, s.queries, width);
    __syncthreads();
    const float dp = dot(own_value, tile + lane * (width + 1), width);
    const float ds = i < s.queries ? p * (dp - delta[row]) * s.scale : 0.0f;
    add(value_sum, p);
    __syncthreads();
    load_tile(tile, q, b, h, first, s.queries, width);
    __syncthreads();
    add(key_sum, ds);
  }
  if (!inside) return;
  for (int c = 0; c < kColumns; ++c) {
    const int column = c * kWarp + lane;
    if (column >= width) continue;
    dk.row(b, h, j)[column] = narrow_to<T>(key_sum[c]);
    dv.row(b, h, j)[column] = narrow_to<T>(value_sum[c]);
  }
}

std::size_t shared_bytes(std::int64_t width, std::int64_t rows) {
  return static_cast<std::size_t>(kWarp * (width + 1) + rows * width) * sizeof(float);
}

Declined check_layout(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors) {
    if (tensor->dim(3) > kMaxWidth)
      return "head width " + std::to_string(tensor->dim(3)) + " is above " + std::to_string(kMaxWidth);
    if (tensor->dim(3) > 1 && tensor->strides()[3] != 1) return "the elements of a head are not dense";
    if (tensor->dim(0) > 65535 || tensor->dim(2) > 65535) return "more than 65535 images or heads";
  }
  return {};
}

template <class T, int kColumns, int kPerWarp>
void forward(CudaBackend& device, const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
             const Tensor& v, const Tensor& bias, const AttentionShape& s) {
  device.launch({.x = blocks_for(s.queries, kWarps * kPerWarp),
                 .y = static_cast<unsigned>(s.heads),
                 .z = static_cast<unsigned>(s.batch),
                 .threads = kThreads,
                 .shared = shared_bytes(s.width, kWarps * kPerWarp)},
                attention_forward<T, kColumns, kPerWarp>, head_rows<T>(out), lse.data<float>(),
                head_rows<const T>(q), head_rows<const T>(k), head_rows<const T>(v), score_bias<T>(bias), s);
}

template <class T, int kColumns>
void backward(CudaBackend& device, const AttentionGradients& g, const AttentionShape& s) {
  Grid grid{.x = blocks_for(s.queries, kWarps),
            .y = static_cast<unsigned>(s.heads),
            .z = static_cast<unsigned>(s.batch),
            .threads = kThreads,
            .shared = shared_bytes(s.width, kWarps * 2)};
  const auto dout = head_rows<const T>(g.dout), q = head_rows<const T>(g.q), k = head_rows<const T>(g.k),
             v = head_rows<const T>(g.v);
  device.launch(grid, attention_dq<T, kColumns>, head_rows<T>(g.dq), dout, q, k, v, score_bias<T>(g.bias),
                g.lse.data<float>(), g.delta.data<float>(), s);
  grid.x = blocks_for(s.keys, kWarps);
  device.launch(grid, attention_dkv<T, kColumns>, head_rows<T>(g.dk), head_rows<T>(g.dv), dout, q, k, v,
                score_bias<T>(g.bias), g.lse.data<float>(), g.delta.data<float>(), s);
}

}  // namespace

Declined CudaBackend::attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                const Tensor& v, const Tensor& bias, const AttentionArgs& args) {
  enter("attention");
  if (auto declined = check_layout({&out, &q, &k, &v})) return declined;
  if (out.numel() == 0) return {};
  if (dnn_ && dnn_->attention(out, lse, q, k, v, bias, args)) return {};
  if (attention_by_tensor_cores(*this, out, lse, q, k, v, bias, args)) return {};
  if (attention_by_products(*this, out, lse, q, k, v, bias, args)) return {};
  const AttentionShape s = attention_shape(q, k, args);
  with_activation("attention", q.dtype(), [&](auto type) {
    using T = decltype(type);
    if (s.width <= 64) {
      forward<T, 2, 4>(*this, out, lse, q, k, v, bias, s);
    } else if (s.width <= 128) {
      forward<T, 4, 2>(*this, out, lse, q, k, v, bias, s);
    } else {
      forward<T, 16, 1>(*this, out, lse, q, k, v, bias, s);
    }
  });
  return {};
}

Declined CudaBackend::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                         const Tensor& dout, const Tensor& out, const Tensor& lse,
                                         const Tensor& q, const Tensor& k, const Tensor& v,
                                         const Tensor& bias, const AttentionArgs& args) {
  enter("attention_backward");
  if (auto declined = check_layout({&dq, &dk, &dv, &dout, &out, &q, &k, &v})) return declined;
  const AttentionShape s = attention_shape(q, k, args);
  if (s.queries == 0 || s.keys == 0) {
    for (const Tensor* each : {&dq, &dk, &dv}) fill(*each, 0);
    return {};
  }
  if (q.numel() == 0) return {};
  if (dnn_ && dnn_->attention_backward(dq, dk, dv, dout, out, lse, q, k, v, bias, args)) return {};
  const Tensor delta = empty({s.batch, s.heads, s.queries});
  with_activation("attention_backward", q.dtype(), [&](auto type) {
    using T = decltype(type);
    launch({.x = blocks_for(s.queries, kWarps),
            .y = static_cast<unsigned>(s.heads),
            .z = static_cast<unsigned>(s.batch),
            .threads = kThreads},
           attention_delta<T>, delta.data<float>(), head_rows<const T>(dout), head_rows<const T>(out), s);
    const AttentionGradients g{dq, dk, dv, dout, lse, q, k, v, bias, delta};
    if (attention_backward_by_tensor_cores(*this, g, s)) return;
    if (s.width <= 64) {
      backward<T, 2>(*this, g, s);
    } else if (s.width <= 128) {
      backward<T, 4>(*this, g, s);
    } else {
      backward<T, 16>(*this, g, s);
    }
  });
  return {};
}

}  // namespace danceflux::cuda
