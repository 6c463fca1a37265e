// Attention forward: softmax(scale q k^T + bias) v, a block of keys after the other, the weights rescaled as
// the highest score rises (online softmax: Milakov and Gimelshein 2018). The score matrix never exists whole.
//
// B batch, Lq and Lk tokens, H heads, K head width.
#include "backend/cpu/attention_blocks.h"

#include <cmath>
#include <limits>

namespace danceflux::cpu {
namespace {

constexpr std::int64_t kQueries = 48, kKeys = 256;  // of a block of scores: 48 KiB
constexpr std::int64_t kLeastRows =
    192;  // queries per task, so that packing the keys stays small beside using them
constexpr double kTaskFlops = 5e5;

struct Forward {
  const Tensor &out, &lse, &q, &k, &v, &bias;
  const AttentionArgs& args;
  const GemmKernels& gemm;
  const AttentionKernels& rows;
  std::int64_t heads, width;
  Blocks keys;
  std::int64_t queries_per_task;

  Forward(const Tensor& out_, const Tensor& lse_, const Tensor& q_, const Tensor& k_, const Tensor& v_,
          const Tensor& bias_, const AttentionArgs& args_, const IsaKernels& isa)
      : out(out_),
        lse(lse_),
        q(q_),
        k(k_),
        v(v_),
        bias(bias_),
        args(args_),
        gemm(*isa.gemm),
        rows(*isa.attention),
        heads(q.dim(2)),
        width(q.dim(3)),
        keys(k.dim(1), kKeys),
        queries_per_task(q.dim(1)) {}

  double flops_per_head() const {
    return 4.0 * static_cast<double>(q.dim(1)) * static_cast<double>(k.dim(1)) * static_cast<double>(width);
  }
  std::size_t run(std::int64_t batch, std::int64_t head, std::int64_t first, std::int64_t last,
                  float* memory) const;
  void finish(const HeadRows& to, float* lse_row, const float* highest, const float* sum, std::int64_t first,
              std::int64_t last) const;
};

// Queries first .. last - 1 of one head. With no memory: how many bytes of it that takes.
std::size_t Forward::run(std::int64_t batch, std::int64_t head, std::int64_t first, std::int64_t last,
                         float* memory) const {
  const std::int64_t score_row = round_up(keys.size, 16) + 16;
  Carver carve(memory);
  float* packed_k = carve.take(round_up(keys.size, gemm.nr) * width);
  float* packed_v = carve.take(round_up(width, gemm.nr) * keys.size);
  float* queries = carve.take(kQueries * left_row(width));
  float* scores = carve.take(kQueries * score_row);
  float* bias_room = carve.take(keys.size);
  float* highest = carve.take(last - first);
  float* sum = carve.take(last - first);
  if (!memory) return carve.bytes();

  const HeadRows q_rows = head_of(q, batch, head), k_rows = head_of(k, batch, head),
                 v_rows = head_of(v, batch, head);
  const HeadRows out_rows = head_of(out, batch, head);
  const BiasRows bias_rows(bias, batch, head);
  std::fill(highest, highest + (last - first), -std::numeric_limits<float>::infinity());
  std::fill(sum, sum + (last - first), 0.0f);
  for (std::int64_t block = 0; block < keys.count(); ++block) {
    const std::int64_t key = keys.first(block), count = keys.length(block);
    if (args.causal && key >= last) break;
    pack_tokens(gemm, packed_k, k_rows, key, count, width);
    pack_width(gemm, packed_v, v_rows, key, count, width);
    for (std::int64_t query = first; query < last; query += kQueries) {
      const std::int64_t length = std::min(kQueries, last - query);
      if (args.causal && key >= query + length) continue;
      const Left left = copy_left(gemm, queries, q_rows, query, length, width);
      block_product(gemm, scores, score_row, length, round_up(count, gemm.lanes), width, left, packed_k,
                    args.scale, false);
      for (std::int64_t i = 0; i < length; ++i) {
        const std::int64_t visible =
            args.causal ? std::clamp<std::int64_t>(query + i + 1 - key, 0, count) : count;
        const ScoreRow row{scores + i * score_row, count, visible,
                           bias_rows.row(query + i, key, count, bias_room)};
        const float factor = rows.softmax_step(row, highest + (query + i - first), sum + (query + i - first));
        if (block > 0 && factor != 1.0f) rows.scale(out_rows.row(query + i), width, factor);
      }
      block_product(gemm, out_rows.row(query), out_rows.stride, length, width, count, {scores, score_row, 1},
                    packed_v, 1, block > 0);
    }
  }
  finish(out_rows, lse.data<float>() + batch * lse.strides()[0] + head * lse.strides()[1], highest, sum,
         first, last);
  return 0;
}

void Forward::finish(const HeadRows& to, float* lse_row, const float* highest, const float* sum,
                     std::int64_t first, std::int64_t last) const {
  for (std::int64_t query = first; query < last; ++query) {
    const float total = sum[query - first];
    if (total == 0) {  // no key at all, or all of them masked
      std::fill_n(to.row(query), width, 0.0f);
    } else {
      rows.scale(to.row(query), width, 1.0f / total);
    }
    lse_row[query * lse.strides()[2]] =
        total == 0 ? -std::numeric_limits<float>::infinity() : highest[query - first] + std::log(total);
  }
}

}  // namespace

Declined check_attention_layout(std::initializer_list<const Tensor*> tensors, std::int64_t width) {
  if (width > kMaxDepth)
    return "head width " + std::to_string(width) + " is above " + std::to_string(kMaxDepth);
  for (const Tensor* tensor : tensors) {
    if (tensor->dtype() != DType::f32) return "expected f32, got " + std::string(name_of(tensor->dtype()));
    if (tensor->dim(3) > 1 && tensor->strides()[3] != 1) return "the elements of a head are not dense";
  }
  return std::nullopt;
}

Declined CpuBackend::attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& bias, const AttentionArgs& args) {
  if (auto declined = check_attention_layout({&out, &q, &k, &v}, q.dim(3))) return declined;
  Forward forward(out, lse, q, k, v, bias, args, scratch_->kernels);
  const std::int64_t heads = q.dim(0) * q.dim(2), queries = q.dim(1);
  if (heads == 0 || queries == 0) return std::nullopt;
  const std::int64_t threads = threads_.threads();
  if (threads > 1 && heads < 4 * threads && forward.flops_per_head() > 2 * kTaskFlops) {
    const std::int64_t pieces = (4 * threads + heads - 1) / heads;
    forward.queries_per_task = std::max(round_up((queries + pieces - 1) / pieces, kQueries), kLeastRows);
  }
  const std::int64_t per_head = (queries + forward.queries_per_task - 1) / forward.queries_per_task;
  // small heads share a task
  const std::int64_t group =
      per_head > 1 ? 1
                   : std::clamp<std::int64_t>(
                         static_cast<std::int64_t>(kTaskFlops / (forward.flops_per_head() + 1)), 1, heads);
  scratch_->reserve_workers(forward.run(0, 0, 0, std::min(queries, forward.queries_per_task), nullptr));
  threads_.run((heads + group - 1) / group * per_head, [&](std::int64_t task, int worker) {
    const std::int64_t first = task % per_head * forward.queries_per_task,
                       last = std::min(queries, first + forward.queries_per_task);
    const std::int64_t from = task / per_head * group;
    for (std::int64_t head = from; head < std::min(heads, from + group); ++head)
      forward.run(head / forward.heads, head % forward.heads, first, last, scratch_->worker(worker));
  });
  return std::nullopt;
}

}  // namespace danceflux::cpu
