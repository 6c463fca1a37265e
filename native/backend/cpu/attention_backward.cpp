// Attention backward: the weights are made again from the scores and lse, block by block.
//   p = exp(scale q k^T + bias - lse), delta = sum(dout * out), ds = p (dout v^T - delta)
//   dv = p^T dout, dq = scale ds k, dk = scale ds^T q
// Sums over queries and over keys run block after block in rising order, whoever computes them: a head is one
// task when there are heads enough; else keys and queries are cut among tasks, and the scores are made twice.
//
// B batch, Lq and Lk tokens, H heads, K head width.
#include "backend/cpu/attention_blocks.h"

namespace danceflux::cpu {
namespace {

constexpr std::int64_t kQueries = 128,
                       kKeys = 128;  // of a block of scores: 64 KiB, and as much for the slopes
constexpr double kTaskFlops = 5e5;

struct Range {
  std::int64_t first, last;  // in blocks
};

struct Backward {
  const Tensor &dq, &dk, &dv, &dout, &out, &lse, &q, &k, &v, &bias;
  const AttentionArgs& args;
  const GemmKernels& gemm;
  const AttentionKernels& rows;
  std::int64_t width;
  Blocks queries, keys;

  std::size_t run(std::int64_t batch, std::int64_t head, Range query_range, Range key_range, bool for_keys,
                  bool for_queries, float* memory) const;
  double flops_per_head() const {
    return 10.0 * static_cast<double>(q.dim(1)) * static_cast<double>(k.dim(1)) * static_cast<double>(width);
  }
};

// Blocks of scores of one head. With no memory: how many bytes of it that takes.
std::size_t Backward::run(std::int64_t batch, std::int64_t head, Range query_range, Range key_range,
                          bool for_keys, bool for_queries, float* memory) const {
  const std::int64_t score_row = round_up(keys.size, 16) + 16;
  Carver carve(memory);
  float* k_tokens = carve.take(round_up(keys.size, gemm.nr) * width);
  float* v_tokens = carve.take(round_up(keys.size, gemm.nr) * width);
  float* k_width = carve.take(round_up(width, gemm.nr) * keys.size);
  float* q_left = carve.take(queries.size * left_row(width));
  float* dout_left = carve.take(queries.size * left_row(width));
  float* q_width = carve.take(round_up(width, gemm.nr) * queries.size);
  float* dout_width = carve.take(round_up(width, gemm.nr) * queries.size);
  float* weights = carve.take(queries.size * score_row);
  float* slopes = carve.take(queries.size * score_row);
  float* bias_room = carve.take(keys.size);
  float* deltas = carve.take(queries.tokens);
  if (!memory) return carve.bytes();

  const HeadRows q_rows = head_of(q, batch, head), k_rows = head_of(k, batch, head),
                 v_rows = head_of(v, batch, head);
  const HeadRows out_rows = head_of(out, batch, head), dout_rows = head_of(dout, batch, head);
  const HeadRows dq_rows = head_of(dq, batch, head), dk_rows = head_of(dk, batch, head),
                 dv_rows = head_of(dv, batch, head);
  const BiasRows bias_rows(bias, batch, head);
  const float* lse_row = lse.data<float>() + batch * lse.strides()[0] + head * lse.strides()[1];
  for (std::int64_t query = queries.first(query_range.first);
       query < std::min(queries.first(query_range.last), queries.tokens); ++query)
    deltas[query] = rows.dot(dout_rows.row(query), out_rows.row(query), width);
  for (std::int64_t key_block = key_range.first; key_block < key_range.last; ++key_block) {
    const std::int64_t key = keys.first(key_block), count = keys.length(key_block);
    pack_tokens(gemm, k_tokens, k_rows, key, count, width);
    pack_tokens(gemm, v_tokens, v_rows, key, count, width);
    if (for_queries) pack_width(gemm, k_width, k_rows, key, count, width);
    bool summing = false;
    for (std::int64_t query_block = query_range.first; query_block < query_range.last; ++query_block) {
      const std::int64_t query = queries.first(query_block), length = queries.length(query_block);
      if (args.causal && key >= query + length) continue;
      const Left left = copy_left(gemm, q_left, q_rows, query, length, width);
      const Left dout_block = copy_left(gemm, dout_left, dout_rows, query, length, width);
      block_product(gemm, weights, score_row, length, round_up(count, gemm.lanes), width, left, k_tokens,
                    args.scale, false);
      block_product(gemm, slopes, score_row, length, round_up(count, gemm.lanes), width, dout_block, v_tokens,
                    1, false);
      for (std::int64_t i = 0; i < length; ++i) {
        const std::int64_t visible =
            args.causal ? std::clamp<std::int64_t>(query + i + 1 - key, 0, count) : count;
        const ScoreRow row{weights + i * score_row, count, visible,
                           bias_rows.row(query + i, key, count, bias_room)};
        rows.softmax_slope(row, slopes + i * score_row, lse_row[(query + i) * lse.strides()[2]],
                           deltas[query + i]);
      }
      if (for_queries)
        block_product(gemm, dq_rows.row(query), dq_rows.stride, length, width, count, {slopes, score_row, 1},
                      k_width, args.scale, key_block > 0);
      if (!for_keys) continue;
      pack_width(gemm, q_width, q_rows, query, length, width);
      pack_width(gemm, dout_width, dout_rows, query, length, width);
      block_product(gemm, dv_rows.row(key), dv_rows.stride, count, width, length, {weights, 1, score_row},
                    dout_width, 1, summing);
      block_product(gemm, dk_rows.row(key), dk_rows.stride, count, width, length, {slopes, 1, score_row},
                    q_width, args.scale, summing);
      summing = true;
    }
    // keys that no query sees
    for (std::int64_t i = 0; for_keys && !summing && i < count; ++i) {
      std::fill_n(dk_rows.row(key + i), width, 0.0f);
      std::fill_n(dv_rows.row(key + i), width, 0.0f);
    }
  }
  for (std::int64_t i = 0; keys.tokens == 0 && i < queries.tokens; ++i)
    std::fill_n(dq_rows.row(i), width, 0.0f);
  return 0;
}

}  // namespace

Declined CpuBackend::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                        const Tensor& dout, const Tensor& out, const Tensor& lse,
                                        const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                        const AttentionArgs& args) {
  if (auto declined = check_attention_layout({&dq, &dk, &dv, &dout, &out, &q, &k, &v}, q.dim(3)))
    return declined;
  const Backward backward{dq,
                          dk,
                          dv,
                          dout,
                          out,
                          lse,
                          q,
                          k,
                          v,
                          bias,
                          args,
                          *scratch_->kernels.gemm,
                          *scratch_->kernels.attention,
                          q.dim(3),
                          Blocks(q.dim(1), kQueries),
                          Blocks(k.dim(1), kKeys)};
  const std::int64_t per_batch = q.dim(2), heads = q.dim(0) * per_batch;
  if (heads == 0) return std::nullopt;
  const Range all_queries{0, backward.queries.count()}, all_keys{0, backward.keys.count()};
  scratch_->reserve_workers(backward.run(0, 0, all_queries, all_keys, true, true, nullptr));
  const auto over_heads = [&](std::int64_t pieces, std::int64_t group, const auto& body) {
    threads_.run((heads + group - 1) / group * pieces, [&](std::int64_t task, int worker) {
      const std::int64_t from = task / pieces * group;
      for (std::int64_t head = from; head < std::min(heads, from + group); ++head)
        body(head / per_batch, head % per_batch, task % pieces, scratch_->worker(worker));
    });
  };
  const bool cut_heads = heads < threads_.threads() && backward.flops_per_head() > 4 * kTaskFlops;
  if (!cut_heads) {
    const std::int64_t group = std::clamp<std::int64_t>(
        static_cast<std::int64_t>(kTaskFlops / (backward.flops_per_head() + 1)), 1, heads);
    over_heads(1, group, [&](std::int64_t batch, std::int64_t head, std::int64_t, float* memory) {
      backward.run(batch, head, all_queries, all_keys, true, true, memory);
    });
    return std::nullopt;
  }
  over_heads(backward.keys.count(), 1,
             [&](std::int64_t batch, std::int64_t head, std::int64_t block, float* memory) {
               backward.run(batch, head, all_queries, {block, block + 1}, true, false, memory);
             });
  over_heads(backward.queries.count(), 1,
             [&](std::int64_t batch, std::int64_t head, std::int64_t block, float* memory) {
               backward.run(batch, head, {block, block + 1}, all_keys, false, true, memory);
             });
  return std::nullopt;
}

}  // namespace danceflux::cpu
