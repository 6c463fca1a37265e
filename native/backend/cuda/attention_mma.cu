// Attention on tensor cores, bf16, after Dao, "FlashAttention-2" (2023): four warps of sixteen queries, keys
// in tiles of 64 through shared memory, probabilities go from the accumulators of the first product straight
// into the operands of the second. Tiles are fixed and keys come in order: a picture's bits do not depend on
// its batch.
#include "backend/cuda/attention_mma.h"

namespace danceflux::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kQueries = 16 * kWarps, kKeys = 64;

template <class Fold>
DF_DEVICE float fold_quad(float value) {  // the four lanes that share a row
  value = Fold::join(value, __shfl_xor_sync(kAllLanes, value, 1));
  return Fold::join(value, __shfl_xor_sync(kAllLanes, value, 2));
}

template <int W>
struct Tiles {
  HeadTile<W, kKeys> key, value;
};

/// Sixteen queries of one warp on their way through the keys.
template <int W>
struct Walk {
  float total[W / 8][4] = {}, highest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  /// Scores become probabilities, up to the final 1 / sum.
  DF_DEVICE void softmax(float (&s)[kKeys / 8][4]) {
    for (int half = 0; half < 2; ++half) {
      float best = highest[half];
      for (int n = 0; n < kKeys / 8; ++n) best = fmaxf(best, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
      best = fold_quad<Max>(best);
      const float base = best == -INFINITY ? 0.0f : best, shrink = expf(highest[half] - base);
      float added = 0;
      for (int n = 0; n < kKeys / 8; ++n)
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          s[n][i] = expf(s[n][i] - base);
          added += s[n][i];
        }
      sum[half] = sum[half] * shrink + fold_quad<Sum>(added);
      highest[half] = best;
      for (int n = 0; n < W / 8; ++n)
        for (int i = half * 2; i < half * 2 + 2; ++i) total[n][i] *= shrink;
    }
  }
};

template <int W>
__global__ void __launch_bounds__(kThreads)
    attention_mma(HeadRows<Bf16> out, float* lse, HeadRows<const Bf16> q, HeadRows<const Bf16> k,
                  HeadRows<const Bf16> v, ScoreBias<Bf16> bias, AttentionShape s) {
  auto& tiles = *reinterpret_cast<Tiles<W>*>(dynamic_shared());
  const auto [lane, group, pair] = this_lane();
  const std::int64_t b = blockIdx.z, h = blockIdx.y;
  const int block_first = static_cast<int>(blockIdx.x) * kQueries,
            first = block_first + static_cast<int>(threadIdx.x) / kWarp * 16;
  const Scores scores(s, bias, b, h);
  HeldRows<W> query;
  query.read(q, b, h, first, scores.queries);
  Walk<W> walk;
  // Keys that no query of this block sees need not be read.
  const bool early = scores.causal && block_first + kQueries < scores.keys;
  const int last = early ? block_first + kQueries : scores.keys;
  for (int key = 0; key < last; key += kKeys) {
    __syncthreads();
    tiles.key.template fetch<kThreads>(k, b, h, key, scores.keys);
    tiles.value.template fetch<kThreads>(v, b, h, key, scores.keys);
    wait_for_copies();
    __syncthreads();
    float x[kKeys / 8][4];
    multiply(x, query, tiles.key, 0);
    for (int n = 0; n < kKeys / 8; ++n)
      for (int e = 0; e < 4; ++e) {
        const int i = first + group + e / 2 * 8, j = key + n * 8 + pair * 2 + e % 2;
        x[n][e] = scores.has(i, j) ? scores(x[n][e], i, j) : -INFINITY;
      }
    walk.softmax(x);
    accumulate<W>(walk.total, x, tiles.value, 0);
  }
  const float(&sum)[2] = walk.sum;
  write_rows<W>(out, b, h, first, scores.queries, walk.total,
                {sum[0] == 0 ? 0.0f : 1.0f / sum[0], sum[1] == 0 ? 0.0f : 1.0f / sum[1]});
  for (int half = 0; half < 2; ++half) {
    const int i = first + group + half * 8;
    if (pair == 0 && i < scores.queries)
      lse[(b * s.heads + h) * s.queries + i] =
          sum[half] == 0 ? -INFINITY : walk.highest[half] + logf(sum[half]);
  }
}

}  // namespace

bool attention_by_tensor_cores(CudaBackend& device, const Tensor& out, const Tensor& lse, const Tensor& q,
                               const Tensor& k, const Tensor& v, const Tensor& bias,
                               const AttentionArgs& args) {
  if (q.dtype() != DType::bf16) return false;
  for (const Tensor* each : {&out, &q, &k, &v})
    if (!in_packs(*each)) return false;
  const AttentionShape s = attention_shape(q, k, args);
  if (!short_enough(s)) return false;
  const auto run = [&](auto kernel, std::size_t shared) {
    device.launch({.x = blocks_for(s.queries, kQueries),
                   .y = static_cast<unsigned>(s.heads),
                   .z = static_cast<unsigned>(s.batch),
                   .threads = kThreads,
                   .shared = shared},
                  kernel, head_rows<Bf16>(out), lse.data<float>(), head_rows<const Bf16>(q),
                  head_rows<const Bf16>(k), head_rows<const Bf16>(v), score_bias<Bf16>(bias), s);
    return true;
  };
  switch (s.width) {
    case 32:
      return run(attention_mma<32>, sizeof(Tiles<32>));
    case 64:
      return run(attention_mma<64>, sizeof(Tiles<64>));
    case 80:
      return run(attention_mma<80>, sizeof(Tiles<80>));
    case 128:
      return run(attention_mma<128>, sizeof(Tiles<128>));
    default:
      return false;
  }
}

}  // namespace danceflux::cuda
