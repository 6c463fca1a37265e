// Attention on tensor cores, bf16, after Dao, "FlashAttention-2" (2023): four warps of sixteen queries, keys
// in tiles of 64 through shared memory, probabilities go from the accumulators of the first product straight
// into the operands of the second. Tiles are fixed and keys come in order: a picture's bits do not depend on
// its batch.
#include "backend/cuda/attention.h"

namespace danceflux::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kQueries = 16 * kWarps, kKeys = 64;
/// Keeps rows of shared memory in different banks.
constexpr int kPad = 8;

DF_DEVICE std::uint32_t pack_bf16(float low, float high) {
  return std::uint32_t{narrow_to<Bf16>(low).bits} | std::uint32_t{narrow_to<Bf16>(high).bits} << 16;
}
DF_DEVICE std::uint32_t two_of(const Bf16* address) {
  return *reinterpret_cast<const std::uint32_t*>(address);
}

template <class Fold>
DF_DEVICE float fold_quad(float value) {  // the four lanes that share a row
  value = Fold::join(value, __shfl_xor_sync(kAllLanes, value, 1));
  return Fold::join(value, __shfl_xor_sync(kAllLanes, value, 2));
}

/// A tile of keys as it lies, [64][W + 8], and the values turned, [W][64 + 8], so that two keys make one
/// register.
template <int W>
struct Tiles {
  Bf16 key[kKeys][W + kPad];
  Bf16 value[W][kKeys + kPad];
};

template <int W>
DF_DEVICE void load_tiles(Tiles<W>& tiles, const HeadRows<const Bf16>& k, const HeadRows<const Bf16>& v,
                          std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t keys) {
  constexpr int kPacks = W / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * kPacks; i += kThreads) {
    const int row = i % kKeys, column = i / kKeys * 8;
    struct alignas(16) Eight {
      Bf16 at[8];
    } key{}, value{};
    if (first + row < keys) {
      key = *reinterpret_cast<const Eight*>(k.row(b, h, first + row) + column);
      value = *reinterpret_cast<const Eight*>(v.row(b, h, first + row) + column);
    }
    *reinterpret_cast<Eight*>(&tiles.key[row][column]) = key;
    for (int j = 0; j < 8; ++j) tiles.value[column + j][row] = value.at[j];
  }
}

/// Sixteen queries of one warp on their way through the keys. Each lane has rows `group` and `group + 8`.
template <int W>
struct Walk {
  std::uint32_t query[W / 16][4];
  float total[W / 8][4];
  float highest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  DF_DEVICE void begin(const HeadRows<const Bf16>& q, std::int64_t b, std::int64_t h, std::int64_t first,
                       std::int64_t queries) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, group = lane / 4, pair = lane % 4;
    for (int step = 0; step < W / 16; ++step)
      for (int part = 0; part < 4; ++part) {
        const std::int64_t row = first + group + part % 2 * 8;
        query[step][part] =
            row < queries ? two_of(q.row(b, h, row) + step * 16 + part / 2 * 8 + pair * 2) : 0u;
      }
    for (int n = 0; n < W / 8; ++n)
      for (int i = 0; i < 4; ++i) total[n][i] = 0;
  }

  DF_DEVICE void scores(float (&s)[kKeys / 8][4], const Tiles<W>& tiles) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, group = lane / 4, pair = lane % 4;
    for (int n = 0; n < kKeys / 8; ++n) {
      for (int i = 0; i < 4; ++i) s[n][i] = 0;
      for (int step = 0; step < W / 16; ++step) {
        const Bf16* key = &tiles.key[n * 8 + group][step * 16 + pair * 2];
        mma_bf16(s[n], query[step], two_of(key), two_of(key + 8));
      }
    }
  }

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

  DF_DEVICE void add_values(const float (&s)[kKeys / 8][4], const Tiles<W>& tiles) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, group = lane / 4, pair = lane % 4;
    for (int step = 0; step < kKeys / 16; ++step) {
      const float(&low)[4] = s[2 * step];
      const float(&high)[4] = s[2 * step + 1];
      const std::uint32_t p[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]),
                                  pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])};
      for (int n = 0; n < W / 8; ++n) {
        const Bf16* value = &tiles.value[n * 8 + group][step * 16 + pair * 2];
        mma_bf16(total[n], p, two_of(value), two_of(value + 8));
      }
    }
  }
};

template <int W>
__global__ void __launch_bounds__(kThreads)
    attention_mma(HeadRows<Bf16> out, float* lse, HeadRows<const Bf16> q, HeadRows<const Bf16> k,
                  HeadRows<const Bf16> v, ScoreBias<Bf16> bias, AttentionShape s) {
  auto& tiles = *reinterpret_cast<Tiles<W>*>(dynamic_shared());
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp,
            group = lane / 4, pair = lane % 4;
  const std::int64_t b = blockIdx.z, h = blockIdx.y, block_first = std::int64_t{blockIdx.x} * kQueries,
                     first = block_first + warp * 16;
  Walk<W> walk;
  walk.begin(q, b, h, first, s.queries);
  // Keys that no query of this block sees need not be read.
  const std::int64_t last = s.causal && block_first + kQueries < s.keys ? block_first + kQueries : s.keys;
  for (std::int64_t key = 0; key < last; key += kKeys) {
    __syncthreads();
    load_tiles(tiles, k, v, b, h, key, s.keys);
    __syncthreads();
    float x[kKeys / 8][4];
    walk.scores(x, tiles);
    for (int n = 0; n < kKeys / 8; ++n)
      for (int i = 0; i < 4; ++i) {
        const std::int64_t row = first + group + i / 2 * 8, column = key + n * 8 + pair * 2 + i % 2;
        x[n][i] *= s.scale;
        if (column >= s.keys || (s.causal && column > row)) {
          x[n][i] = -INFINITY;
        } else if (bias.base && row < s.queries) {
          x[n][i] += widen(bias.base[b * bias.batch + h * bias.head + row * bias.query + column * bias.key]);
        }
      }
    walk.softmax(x);
    walk.add_values(x, tiles);
  }
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = first + group + half * 8;
    if (row >= s.queries) continue;
    const float total = walk.sum[half], scale = total == 0 ? 0.0f : 1.0f / total;
    Bf16* to = out.row(b, h, row);
    for (int n = 0; n < W / 8; ++n)
      *reinterpret_cast<std::uint32_t*>(to + n * 8 + pair * 2) =
          pack_bf16(walk.total[n][half * 2] * scale, walk.total[n][half * 2 + 1] * scale);
    if (pair == 0)
      lse[(b * s.heads + h) * s.queries + row] = total == 0 ? -INFINITY : walk.highest[half] + logf(total);
  }
}

/// Every row of a head begins at a multiple of 16 bytes.
bool in_packs(const Tensor& x) {
  for (int axis = 0; axis < 3; ++axis)
    if (x.strides()[axis] % 8 != 0) return false;  // also of one image: it must take the way that many take
  return x.strides()[3] == 1 && reinterpret_cast<std::uintptr_t>(x.address()) % 16 == 0;
}

}  // namespace

bool attention_by_tensor_cores(CudaBackend& device, const Tensor& out, const Tensor& lse, const Tensor& q,
                               const Tensor& k, const Tensor& v, const Tensor& bias,
                               const AttentionArgs& args) {
  if (q.dtype() != DType::bf16) return false;
  for (const Tensor* each : {&out, &q, &k, &v})
    if (!in_packs(*each)) return false;
  const AttentionShape s = attention_shape(q, k, args);
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
