// The gradients of attention on tensor cores, bf16, after Dao, "FlashAttention-2" (2023), algorithm 2, in two
// kernels, so that nothing is added by two blocks: one has queries and goes through the keys for dq, the
// other has keys and goes through the queries for dk and dv. Each makes the scores again. P and dS are
// rounded to bf16 where they go into a second product; all sums are f32. Tiles are fixed and come in order:
// the bits are the same each time, and a picture's do not depend on its batch.
#include "backend/cuda/attention_mma.h"

namespace danceflux::cuda {
namespace {

/// What both kernels read. lse and delta [B, H, Lq].
struct Inputs {
  HeadRows<const Bf16> dout, q, k, v;
  ScoreBias<Bf16> bias;
  const float *lse, *delta;
  AttentionShape s;
};

/// How the work of width W is cut. A warp has sixteen rows; tiles of the other side are kRows high, two of
/// each in turn, so that the next ones come while these are worked on; kTiles * 8 of their rows are taken at
/// once, which is what registers allow.
template <int W>
struct Cut {
  static constexpr int kWarps = W > 80 ? 8 : 4, kThreads = kWarps * kWarp, kBlockRows = 16 * kWarps;
  static constexpr int kRows = W > 64 ? 32 : 64;
  static constexpr int kTiles = W > 80 ? 2 : 4;
};

template <int W>
struct KeyStage {
  HeadTile<W, Cut<W>::kRows> k, v;
};

template <int W>
struct QueryStage {
  HeadTile<W, Cut<W>::kRows> q, dout;
  float lse[Cut<W>::kRows], delta[Cut<W>::kRows];
};

/// Of a query without any key lse is -inf, and every probability 0.
DF_DEVICE float probability(const Scores& scores, float product, int i, int j, float lse) {
  if (!scores.has(i, j) || lse == -INFINITY) return 0.0f;
  return expf(scores(product, i, j) - lse);
}

template <int W>
__global__ void __launch_bounds__(Cut<W>::kThreads) attention_mma_dq(HeadRows<Bf16> dq, Inputs in) {
  using C = Cut<W>;
  auto* stages = reinterpret_cast<KeyStage<W>*>(dynamic_shared());
  const auto [lane, group, pair] = this_lane();
  const std::int64_t b = blockIdx.z, h = blockIdx.y;
  const int block_first = static_cast<int>(blockIdx.x) * C::kBlockRows,
            first = block_first + static_cast<int>(threadIdx.x) / kWarp * 16;
  const Scores scores(in.s, in.bias, b, h);
  const auto fetch = [&](KeyStage<W>& stage, int key) {
    stage.k.template fetch<C::kThreads>(in.k, b, h, key, scores.keys);
    stage.v.template fetch<C::kThreads>(in.v, b, h, key, scores.keys);
  };
  // Keys that no query of this block sees need not be read.
  const bool early = scores.causal && block_first + C::kBlockRows < scores.keys;
  const int last = early ? block_first + C::kBlockRows : scores.keys;
  fetch(stages[0], 0);
  HeldRows<W> query, above;
  query.read(in.q, b, h, first, scores.queries);
  above.read(in.dout, b, h, first, scores.queries);
  float lse[2], delta[2], total[W / 8][4] = {};
  for (int half = 0; half < 2; ++half) {
    const int i = first + group + half * 8;
    const std::int64_t at = (b * in.s.heads + h) * in.s.queries + i;
    lse[half] = i < scores.queries ? in.lse[at] : -INFINITY;
    delta[half] = i < scores.queries ? in.delta[at] : 0.0f;
  }
  for (int key = 0, turn = 0; key < last; key += C::kRows, turn ^= 1) {
    wait_for_copies();
    __syncthreads();
    if (key + C::kRows < last) fetch(stages[turn ^ 1], key + C::kRows);
    const KeyStage<W>& stage = stages[turn];
    for (int row = 0; row < C::kRows; row += C::kTiles * 8) {
      float x[C::kTiles][4], dp[C::kTiles][4];
      multiply(x, query, stage.k, row);
      multiply(dp, above, stage.v, row);
      for (int n = 0; n < C::kTiles; ++n)
        for (int e = 0; e < 4; ++e) {
          const int i = first + group + e / 2 * 8, j = key + row + n * 8 + pair * 2 + e % 2;
          const float p = probability(scores, x[n][e], i, j, lse[e / 2]);
          x[n][e] = p * (dp[n][e] - delta[e / 2]) * scores.scale;
        }
      accumulate<W>(total, x, stage.k, row);
    }
  }
  write_rows<W>(dq, b, h, first, scores.queries, total, {1, 1});
}

template <int W>
__global__ void __launch_bounds__(Cut<W>::kThreads)
    attention_mma_dkv(HeadRows<Bf16> dk, HeadRows<Bf16> dv, Inputs in) {
  using C = Cut<W>;
  auto* stages = reinterpret_cast<QueryStage<W>*>(dynamic_shared());
  const auto [lane, group, pair] = this_lane();
  const std::int64_t b = blockIdx.z, h = blockIdx.y, head = (b * in.s.heads + h) * in.s.queries;
  const int block_first = static_cast<int>(blockIdx.x) * C::kBlockRows,
            first = block_first + static_cast<int>(threadIdx.x) / kWarp * 16;
  const Scores scores(in.s, in.bias, b, h);
  const auto fetch = [&](QueryStage<W>& stage, int query) {
    stage.q.template fetch<C::kThreads>(in.q, b, h, query, scores.queries);
    stage.dout.template fetch<C::kThreads>(in.dout, b, h, query, scores.queries);
    const int n = static_cast<int>(threadIdx.x);
    if (n >= C::kRows) return;
    const bool inside = query + n < scores.queries;
    const std::int64_t at = inside ? head + query + n : 0;
    copy_async<4>(&stage.lse[n], in.lse + at, inside);
    copy_async<4>(&stage.delta[n], in.delta + at, inside);
  };
  // Queries that see no key of this block need not be read.
  const int begin = scores.causal ? block_first : 0;
  if (begin < scores.queries) fetch(stages[0], begin);
  HeldRows<W> own_key, own_value;
  own_key.read(in.k, b, h, first, scores.keys);
  own_value.read(in.v, b, h, first, scores.keys);
  float key_total[W / 8][4] = {}, value_total[W / 8][4] = {};
  for (int query = begin, turn = 0; query < scores.queries; query += C::kRows, turn ^= 1) {
    wait_for_copies();
    __syncthreads();
    if (query + C::kRows < scores.queries) fetch(stages[turn ^ 1], query + C::kRows);
    const QueryStage<W>& stage = stages[turn];
    for (int row = 0; row < C::kRows; row += C::kTiles * 8) {
      float p[C::kTiles][4], ds[C::kTiles][4];
      multiply(p, own_key, stage.q, row);
      multiply(ds, own_value, stage.dout, row);
      for (int n = 0; n < C::kTiles; ++n)
        for (int e = 0; e < 4; ++e) {
          const int at = row + n * 8 + pair * 2 + e % 2, j = first + group + e / 2 * 8;
          p[n][e] = probability(scores, p[n][e], query + at, j, stage.lse[at]);
          ds[n][e] = p[n][e] * (ds[n][e] - stage.delta[at]) * scores.scale;
        }
      accumulate<W>(value_total, p, stage.dout, row);
      accumulate<W>(key_total, ds, stage.q, row);
    }
  }
  write_rows<W>(dk, b, h, first, scores.keys, key_total, {1, 1});
  write_rows<W>(dv, b, h, first, scores.keys, value_total, {1, 1});
}

template <int W>
void run(CudaBackend& device, const AttentionGradients& g, const Inputs& in) {
  using C = Cut<W>;
  Grid grid{.x = blocks_for(in.s.queries, C::kBlockRows),
            .y = static_cast<unsigned>(in.s.heads),
            .z = static_cast<unsigned>(in.s.batch),
            .threads = C::kThreads,
            .shared = 2 * sizeof(KeyStage<W>)};
  device.launch(grid, attention_mma_dq<W>, head_rows<Bf16>(g.dq), in);
  grid.x = blocks_for(in.s.keys, C::kBlockRows);
  grid.shared = 2 * sizeof(QueryStage<W>);
  device.launch(grid, attention_mma_dkv<W>, head_rows<Bf16>(g.dk), head_rows<Bf16>(g.dv), in);
}

}  // namespace

bool attention_backward_by_tensor_cores(CudaBackend& device, const AttentionGradients& g,
                                        const AttentionShape& s) {
  if (g.q.dtype() != DType::bf16 || !short_enough(s)) return false;
  for (const Tensor* each : {&g.dq, &g.dk, &g.dv, &g.dout, &g.q, &g.k, &g.v})
    if (!in_packs(*each)) return false;
  const Inputs in{head_rows<const Bf16>(g.dout), head_rows<const Bf16>(g.q),
                  head_rows<const Bf16>(g.k),    head_rows<const Bf16>(g.v),
                  score_bias<Bf16>(g.bias),      g.lse.data<float>(),
                  g.delta.data<float>(),         s};
  switch (s.width) {
    case 32:
      return run<32>(device, g, in), true;
    case 64:
      return run<64>(device, g, in), true;
    case 80:
      return run<80>(device, g, in), true;
    case 128:
      return run<128>(device, g, in), true;
    default:
      return false;
  }
}

}  // namespace danceflux::cuda
