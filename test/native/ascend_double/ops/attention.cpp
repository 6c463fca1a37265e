#include "ascend_double/ops/attention.h"

namespace ascend_double {
namespace {

constexpr std::int64_t kStatistics = 8;  // each statistic is written that many times side by side

struct AttentionForward {
  AttentionInputs inputs;
  Operand top, total, out;
};

// One head: probabilities from scores in place, row maxima and sums.
void softmax_rows(const AttentionSizes& s, float* scores, float* tops, float* totals) {
  for (std::int64_t row = 0; row < s.queries; ++row) {
    float* at = scores + row * s.keys;
    float top = -std::numeric_limits<float>::infinity();
    for (std::int64_t i = 0; i < s.keys; ++i) top = std::max(top, at[i]);
    // A row with nothing in it gives zeros.
    const float base = std::isinf(top) ? 0 : top;
    for (std::int64_t i = 0; i < s.keys; ++i) at[i] = std::exp(at[i] - base);
    tops[row] = top;
    totals[row] = sum(at, s.keys);
  }
}

void run_attention(const Launch& launch, const AttentionForward& f) {
  const AttentionSizes& s = f.inputs.sizes;
  const Dense<float> q = load<float>(launch, f.inputs.q), k = load<float>(launch, f.inputs.k);
  const Dense<float> v = load<float>(launch, f.inputs.v);
  const Scores scores(launch, f.inputs);
  const std::int64_t share = s.heads / s.key_heads, rows = s.batch * s.heads * s.queries;
  Dense<float> out(rows * s.value_width), tops(rows * kStatistics), totals(rows * kStatistics);
  parallel(s.batch * s.heads, 1, [&](std::int64_t first, std::int64_t last) {
    Dense<float> shares(s.queries * s.keys), top(s.queries), total(s.queries);
    for (std::int64_t at = first; at < last; ++at) {
      const std::int64_t key_head = at / s.heads * s.key_heads + at % s.heads / share;
      scores.compute(at / s.heads, at % s.heads, q.data() + at * s.queries * s.width,
                     k.data() + key_head * s.keys * s.width, shares.data());
      softmax_rows(s, shares.data(), top.data(), total.data());
      // The matrix unit reads probabilities in the dtype of the tensors.
      for (std::int64_t i = 0; i < shares.count(); ++i) shares[i] = rounded(shares[i], f.inputs.q.dtype);
      float* result = out.data() + at * s.queries * s.value_width;
      gemm(s.queries, s.value_width, s.keys, {shares.data(), s.keys, 1},
           {v.data() + key_head * s.keys * s.value_width, s.value_width, 1}, result, false);
      for (std::int64_t row = 0; row < s.queries; ++row) {
        for (std::int64_t i = 0; i < s.value_width; ++i)
          result[row * s.value_width + i] = total[row] > 0 ? result[row * s.value_width + i] / total[row] : 0;
        for (std::int64_t i = 0; i < kStatistics; ++i) {
          tops[(at * s.queries + row) * kStatistics + i] = top[row];
          totals[(at * s.queries + row) * kStatistics + i] = total[row];
        }
      }
    }
  });
  store(launch, f.out, out);
  store(launch, f.top, tops);
  store(launch, f.total, totals);
}

void plan_attention(Plan& plan, const AttentionArguments& arguments, Tensor top, Tensor total, Tensor softmax,
                    Tensor out) {
  AttentionForward f;
  f.inputs = attention_inputs(plan, arguments, [](Plan&, const AttentionInputs&) {});
  const AttentionSizes& s = f.inputs.sizes;
  f.top = plan.out(top, "softmaxMaxOut", Types{ACL_FLOAT});
  f.total = plan.out(total, "softmaxSumOut", Types{ACL_FLOAT});
  const Operand unused = plan.out(softmax, "softmaxOutOut", kFloats);
  plan.require(unused.count() == 0, "softmaxOutOut: expected an empty tensor");
  plan.require_shape(f.top, "softmaxMaxOut", {s.batch, s.heads, s.queries, kStatistics});
  plan.require_shape(f.total, "softmaxSumOut", {s.batch, s.heads, s.queries, kStatistics});
  const Operand written = plan.out(out, "attentionOutOut", Types{f.inputs.q.dtype});
  f.out = as_heads(plan, written, arguments.layout, s.heads, "attentionOutOut");
  plan.require_shape(f.out, "attentionOutOut", {s.batch, s.heads, s.queries, s.value_width});
  plan.workspace = 64 * 1024;
  plan.compute = [=](const Launch& launch) { run_attention(launch, f); };
}

struct AttentionBackward {
  AttentionInputs inputs;
  Operand dy, top, total, out, dq, dk, dv, dbias;
  bool fixed = true;
};

/// Gradients of one head; tmp and grads [queries, keys].
struct HeadGradients {
  float *shares, *slopes, *dq, *dk, *dv;
};

void head_backward(const AttentionSizes& s, const float* q, const float* k, const float* v, const float* dy,
                   const float* out, float scale, aclDataType dtype, const KOrder& order,
                   const HeadGradients& g) {
  gemm(s.queries, s.keys, s.value_width, {dy, s.value_width, 1}, {v, 1, s.value_width}, g.slopes, false);
  for (std::int64_t row = 0; row < s.queries; ++row) {
    float along = 0;
    for (std::int64_t i = 0; i < s.value_width; ++i)
      along += dy[row * s.value_width + i] * out[row * s.value_width + i];
    for (std::int64_t i = row * s.keys; i < (row + 1) * s.keys; ++i) {
      g.slopes[i] = rounded(g.shares[i] * (g.slopes[i] - along), dtype);
      g.shares[i] = rounded(g.shares[i], dtype);
    }
  }
  gemm(s.keys, s.value_width, s.queries, {g.shares, 1, s.keys}, {dy, s.value_width, 1}, g.dv, true, order);
  gemm(s.queries, s.width, s.keys, {g.slopes, s.keys, 1}, {k, s.width, 1}, g.dq, false, order);
  for (std::int64_t i = 0; i < s.queries * s.width; ++i) g.dq[i] *= scale;
  Dense<float> dk(s.keys * s.width);
  gemm(s.keys, s.width, s.queries, {g.slopes, 1, s.keys}, {q, s.width, 1}, dk.data(), false, order);
  for (std::int64_t i = 0; i < dk.count(); ++i) g.dk[i] += scale * dk[i];
}

void run_attention_backward(const Launch& launch, const AttentionBackward& b) {
  const AttentionSizes& s = b.inputs.sizes;
  const Dense<float> q = load<float>(launch, b.inputs.q), k = load<float>(launch, b.inputs.k);
  const Dense<float> v = load<float>(launch, b.inputs.v), dy = load<float>(launch, b.dy),
                     out = load<float>(launch, b.out);
  const Dense<float> tops = load<float>(launch, b.top), totals = load<float>(launch, b.total);
  const Scores scores(launch, b.inputs);
  Dense<float> dq(q.count()), dk(k.count()), dv(v.count()), shares(s.queries * s.keys),
      slopes(s.queries * s.keys);
  std::fill(dk.data(), dk.data() + dk.count(), 0.0f);
  std::fill(dv.data(), dv.data() + dv.count(), 0.0f);
  Dense<float> dbias(b.dbias ? b.dbias.count() : 0);
  std::fill(dbias.data(), dbias.data() + dbias.count(), 0.0f);
  const KOrder order{false, b.fixed ? 0 : launch.chance | 1};
  for (std::int64_t at = 0; at < s.batch * s.heads; ++at) {
    const std::int64_t key_head = at / s.heads * s.key_heads + at % s.heads / (s.heads / s.key_heads);
    const float *q_head = q.data() + at * s.queries * s.width,
                *k_head = k.data() + key_head * s.keys * s.width;
    scores.compute(at / s.heads, at % s.heads, q_head, k_head, shares.data());
    for (std::int64_t row = 0; row < s.queries; ++row) {
      // Element 0 of the eight: what the forward pass wrote, not what could be computed again.
      const float top = tops[(at * s.queries + row) * kStatistics],
                  total = totals[(at * s.queries + row) * kStatistics];
      for (std::int64_t i = row * s.keys; i < (row + 1) * s.keys; ++i)
        shares[i] = total > 0 ? std::exp(shares[i] - top) / total : 0;
    }
    head_backward(s, q_head, k_head, v.data() + key_head * s.keys * s.value_width,
                  dy.data() + at * s.queries * s.value_width, out.data() + at * s.queries * s.value_width,
                  b.inputs.scale, b.inputs.q.dtype, order,
                  {shares.data(), slopes.data(), dq.data() + at * s.queries * s.width,
                   dk.data() + key_head * s.keys * s.width, dv.data() + key_head * s.keys * s.value_width});
    if (b.dbias) {
      const std::int64_t area = s.queries * s.keys;
      float* to = dbias.data() + (b.dbias.size(0) > 1 ? at : at % s.heads) * area;
      for (std::int64_t i = 0; i < area; ++i)
        to[i] += slopes[i] * (b.inputs.bias_scaled ? b.inputs.scale : 1);
    }
  }
  store(launch, b.dq, dq);
  store(launch, b.dk, dk);
  store(launch, b.dv, dv);
  store(launch, b.dbias, dbias);
}

// Outside of the heads' view: a gradient of bias where there is a bias, an empty tensor otherwise.
Operand bias_gradient(Plan& plan, Tensor tensor, const AttentionInputs& inputs) {
  const Operand operand = plan.out(tensor, "dpseOut", kFloats);
  if (!inputs.bias) {
    plan.require(operand.count() == 0, "dpseOut: expected an empty tensor without pse");
    return {};
  }
  plan.require_type(operand, "dpseOut", inputs.q.dtype);
  plan.require_shape(operand, "dpseOut", inputs.bias.shape);
  plan.require(inputs.bias.size(2) == inputs.sizes.queries, "dpseOut: the double has none for [B, N, 1, S]");
  return operand;
}

void plan_attention_backward(Plan& plan, const AttentionArguments& arguments, Tensor dy, Tensor top,
                             Tensor total, Tensor softmax, Tensor out, Tensor dq, Tensor dk, Tensor dv,
                             Tensor dbias) {
  AttentionBackward b;
  const auto heads_of = [&](Tensor tensor, const char* name, const AttentionInputs& inputs,
                            std::int64_t heads, bool output) {
    const Types own{inputs.q.dtype};
    return as_heads(plan, output ? plan.out(tensor, name, own) : plan.in(tensor, name, own), arguments.layout,
                    heads, name);
  };
  b.inputs = attention_inputs(plan, arguments, [&](Plan&, const AttentionInputs& inputs) {
    b.dy = heads_of(dy, "dy", inputs, arguments.heads, false);
  });
  const AttentionSizes& s = b.inputs.sizes;
  b.top = plan.in(top, "softmaxMax", Types{ACL_FLOAT});
  b.total = plan.in(total, "softmaxSum", Types{ACL_FLOAT});
  plan.optional(softmax, "softmaxIn", kFloats);
  b.out = heads_of(out, "attentionIn", b.inputs, s.heads, false);
  b.dq = heads_of(dq, "dqOut", b.inputs, s.heads, true);
  b.dk = heads_of(dk, "dkOut", b.inputs, s.key_heads, true);
  b.dv = heads_of(dv, "dvOut", b.inputs, s.key_heads, true);
  b.dbias = bias_gradient(plan, dbias, b.inputs);
  plan.require_shape(b.dy, "dy", {s.batch, s.heads, s.queries, s.value_width});
  plan.require_shape(b.out, "attentionIn", b.dy.shape);
  for (const Operand* one : std::initializer_list<const Operand*>{&b.top, &b.total})
    plan.require_shape(*one, "softmaxMax, softmaxSum", {s.batch, s.heads, s.queries, kStatistics});
  plan.require_shape(b.dq, "dqOut", b.inputs.q.shape);
  plan.require_shape(b.dk, "dkOut", b.inputs.k.shape);
  plan.require_shape(b.dv, "dvOut", b.inputs.v.shape);
  // This op asks the context alone.
  Context& context = current_context();
  {
    const std::scoped_lock lock(context.mutex);
    const auto own = context.options.find(ACL_OPT_DETERMINISTIC);
    b.fixed = own != context.options.end() && own->second;
  }
  plan.workspace = 64 * 1024;
  plan.compute = [=](const Launch& launch) { run_attention_backward(launch, b); };
}

void check_lists(Plan& plan, Ints prefix, Ints q_start, Ints kv_start) {
  plan.require(!prefix && !q_start && !kv_start,
               "the double has no prefix and no start indices: expected NULL");
}

}  // namespace

OP(transformer, FlashAttentionScore, Tensor q, Tensor k, Tensor v, Tensor real_shift, Tensor drop_mask,
   Tensor padding_mask, Tensor atten_mask, Ints prefix, double scale, double keep, std::int64_t before,
   std::int64_t after, std::int64_t heads, const char* layout, std::int64_t inner_precise,
   std::int64_t sparse_mode, Tensor top, Tensor total, Tensor softmax, Tensor out) {
  check_lists(plan, prefix, nullptr, nullptr);
  plan_attention(plan,
                 {q, k, v, real_shift, drop_mask, padding_mask, atten_mask, scale, keep, before, after, heads,
                  layout, inner_precise, sparse_mode, 1},
                 top, total, softmax, out);
}

OP(transformer, FlashAttentionScoreV2, Tensor q, Tensor k, Tensor v, Tensor real_shift, Tensor drop_mask,
   Tensor padding_mask, Tensor atten_mask, Ints prefix, Ints q_start, Ints kv_start, double scale,
   double keep, std::int64_t before, std::int64_t after, std::int64_t heads, const char* layout,
   std::int64_t inner_precise, std::int64_t sparse_mode, std::int64_t pse_type, Tensor top, Tensor total,
   Tensor softmax, Tensor out) {
  check_lists(plan, prefix, q_start, kv_start);
  plan_attention(plan,
                 {q, k, v, real_shift, drop_mask, padding_mask, atten_mask, scale, keep, before, after, heads,
                  layout, inner_precise, sparse_mode, pse_type},
                 top, total, softmax, out);
}

OP(transformer, FlashAttentionScoreGrad, Tensor q, Tensor k, Tensor v, Tensor dy, Tensor pse,
   Tensor drop_mask, Tensor padding_mask, Tensor atten_mask, Tensor top, Tensor total, Tensor softmax,
   Tensor out, Ints prefix, double scale, double keep, std::int64_t before, std::int64_t after,
   std::int64_t heads, const char* layout, std::int64_t inner_precise, std::int64_t sparse_mode, Tensor dq,
   Tensor dk, Tensor dv, Tensor dpse) {
  check_lists(plan, prefix, nullptr, nullptr);
  plan_attention_backward(plan,
                          {q, k, v, pse, drop_mask, padding_mask, atten_mask, scale, keep, before, after,
                           heads, layout, inner_precise, sparse_mode, 1},
                          dy, top, total, softmax, out, dq, dk, dv, dpse);
}

OP(transformer, FlashAttentionScoreGradV2, Tensor q, Tensor k, Tensor v, Tensor dy, Tensor pse,
   Tensor drop_mask, Tensor padding_mask, Tensor atten_mask, Tensor top, Tensor total, Tensor softmax,
   Tensor out, Ints prefix, Ints q_start, Ints kv_start, double scale, double keep, std::int64_t before,
   std::int64_t after, std::int64_t heads, const char* layout, std::int64_t inner_precise,
   std::int64_t sparse_mode, std::int64_t pse_type, Tensor dq, Tensor dk, Tensor dv, Tensor dpse) {
  check_lists(plan, prefix, q_start, kv_start);
  plan_attention_backward(plan,
                          {q, k, v, pse, drop_mask, padding_mask, atten_mask, scale, keep, before, after,
                           heads, layout, inner_precise, sparse_mode, pse_type},
                          dy, top, total, softmax, out, dq, dk, dv, dpse);
}

}  // namespace ascend_double
