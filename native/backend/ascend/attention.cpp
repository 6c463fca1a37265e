// Attention that keeps no score matrix. B batch, H heads, K head width, Lq and Lk query and key tokens. The
// operators take our layout as it is: BSND. A call may be cut into several launches, by batch entry and by
// head, none of which sees another's numbers: a very long one can trip the watchdog of the device's cores.
#include <algorithm>
#include <vector>

#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {
namespace {

constexpr i64 kWhole = 2147483647;  // previous and next tokens: no band
constexpr i64 kFullMask = 0;        // sparse mode
constexpr i64 kPrecise = 0;
constexpr f64 kKeepAll = 1;
constexpr std::int64_t kStatistics = 8;  // each is there so many times
constexpr std::int64_t kMostWidth = 512, kMostHeads = 256;

/// One of the equal ones: [B, H, L, 8] -> [B, H, L].
Tensor first_of(const Tensor& statistics) {
  const Shape& shape = statistics.shape();
  return Tensor(statistics.storage(), statistics.dtype(), {shape[0], shape[1], shape[2]},
                {shape[1] * shape[2] * kStatistics, shape[2] * kStatistics, kStatistics}, 0);
}

/// Batch entries and heads of a call that one launch computes.
struct Part {
  std::int64_t batch, batches, head, heads;
  /// Of x [B, ...] with heads along `head_axis`; an axis of length 1 is shared by all. Undefined stays
  /// undefined.
  Tensor of(const Tensor& x, int head_axis) const {
    if (!x) return x;
    const Tensor entries = x.dim(0) == 1 ? x : x.narrow(0, batch, batches);
    return entries.dim(head_axis) == 1 ? entries : entries.narrow(head_axis, head, heads);
  }
};

/// In order, each of `most` scores at most: whole batch entries while one fits, else some heads of one, else
/// one head. most 0: one part.
std::vector<Part> parts_of(const Tensor& q, const Tensor& k, std::int64_t most) {
  const std::int64_t batch = q.dim(0), heads = q.dim(2), scores = q.dim(1) * k.dim(1);  // of a head
  const std::int64_t fit = most == 0 ? batch * heads : std::max<std::int64_t>(1, most / scores);
  const std::int64_t batches = std::clamp<std::int64_t>(fit / heads, 1, batch);
  const std::int64_t group = std::min(fit, heads);
  std::vector<Part> parts;
  for (std::int64_t b = 0; b < batch; b += batches) {
    for (std::int64_t h = 0; h < heads; h += group)
      parts.push_back({b, std::min(batches, batch - b), h, std::min(group, heads - h)});
  }
  return parts;
}

}  // namespace

Declined AscendBackend::no_attention(const Tensor& q, const OperatorSymbols& call) const {
  if (!call.found()) return std::string("this CANN has no ") + call.name;
  if (!knows_bf16(npu_->cann().chip) || npu_->cann().chip == Chip::a5)
    return std::string(call.name) + " is for A2 and A3 chips, this is " + npu_->cann().soc;
  if (q.dim(3) > kMostWidth)
    return "head width " + std::to_string(q.dim(3)) + " is above " + std::to_string(kMostWidth);
  if (q.dim(2) > kMostHeads)
    return std::to_string(q.dim(2)) + " heads are more than " + std::to_string(kMostHeads);
  return {};
}

/// The operator adds the bias before it scales.
Tensor AscendBackend::attention_bias(const Tensor& bias, const AttentionArgs& args) {
  if (!bias) return bias;
  if (args.scale == 1) return dense(bias);
  const Tensor scaled = empty(bias.shape(), bias.dtype());
  launch_("attention", ops().aclnnMuls, bias, F32{1.0 / args.scale}, scaled);
  return scaled;
}

/// [Lq, Lk], 1 where query i does not see key j: the other way round than in PyTorch.
Tensor AscendBackend::causal_mask(std::int64_t queries, std::int64_t keys) {
  std::vector<std::uint8_t> values(static_cast<std::size_t>(queries * keys), 0);
  for (std::int64_t i = 0; i < queries; ++i) {
    for (std::int64_t j = i + 1; j < keys; ++j) values[static_cast<std::size_t>(i * keys + j)] = 1;
  }
  const Tensor mask = empty({queries, keys}, DType::u8);
  upload(mask, values.data());
  return mask;
}

Declined AscendBackend::attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const Tensor& bias, const AttentionArgs& args) {
  if (Declined declined = no_attention(q, ops().aclnnFlashAttentionScore)) return declined;
  if (out.numel() == 0 || k.numel() == 0) return "there are no tokens";
  const Tensor mask = args.causal ? causal_mask(q.dim(1), k.dim(1)) : Tensor();
  for (const Part& part : parts_of(q, k, settings_.attention_scores))
    attend(part.of(out, 2), part.of(lse, 1), part.of(q, 2), part.of(k, 2), part.of(v, 2), part.of(bias, 1),
           mask, args);
  return {};
}

void AscendBackend::attend(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                           const Tensor& v, const Tensor& bias, const Tensor& mask,
                           const AttentionArgs& args) {
  const Result result(*this, out);
  const Shape statistics{q.dim(0), q.dim(2), q.dim(1), kStatistics};
  const Tensor largest = empty(statistics), sum = empty(statistics);
  const Tensor added = attention_bias(bias, args);
  const auto launch = [&](const auto& hidden) {
    launch_("attention", ops().aclnnFlashAttentionScore, dense(q), dense(k), dense(v), added, nullptr,
            nullptr, hidden, nullptr, f64{args.scale}, kKeepAll, kWhole, kWhole, q.dim(2), "BSND", kPrecise,
            kFullMask, largest, sum, NoElements{q.dtype()}, result.tensor());
  };
  if (mask) {
    launch(BoolMask{mask});
  } else {
    launch(nullptr);
  }
  launch_("attention", ops().aclnnLog, first_of(sum), lse);
  launch_("attention", ops().aclnnAdd, lse, first_of(largest), F32{1}, lse);
  result.finish();
}

Declined AscendBackend::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                           const Tensor& dout, const Tensor& out, const Tensor& lse,
                                           const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& bias, const AttentionArgs& args) {
  if (Declined declined = no_attention(q, ops().aclnnFlashAttentionScoreGrad)) return declined;
  if (out.numel() == 0 || k.numel() == 0) return "there are no tokens";
  const Tensor mask = args.causal ? causal_mask(q.dim(1), k.dim(1)) : Tensor();
  for (const Part& part : parts_of(q, k, settings_.attention_scores)) {
    const auto tokens = [&](const Tensor& x) { return part.of(x, 2); };
    attend_backward(tokens(dq), tokens(dk), tokens(dv), tokens(dout), tokens(out), part.of(lse, 1), tokens(q),
                    tokens(k), tokens(v), part.of(bias, 1), mask, args);
  }
  return {};
}

// A weight of the softmax is exp(score - largest) / sum: with the logarithm of the sum of exponentials for
// the largest, the sum is 1.
void AscendBackend::attend_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                                    const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                    const Tensor& v, const Tensor& bias, const Tensor& mask,
                                    const AttentionArgs& args) {
  const Result query(*this, dq, q.dtype()), key(*this, dk, q.dtype()), value(*this, dv, q.dtype());
  const Shape statistics{q.dim(0), q.dim(2), q.dim(1), kStatistics};
  const Tensor largest = empty(statistics), sum = filled(statistics, 1);
  copy(largest, lse.view({q.dim(0), q.dim(2), q.dim(1), 1}).expand(statistics));
  const Tensor added = attention_bias(bias, args);
  const auto launch = [&](const auto& hidden, const auto& dbias) {
    launch_("attention_backward", ops().aclnnFlashAttentionScoreGrad, dense(q), dense(k), dense(v),
            dense(dout, q.dtype()), added, nullptr, nullptr, hidden, largest, sum, nullptr, dense(out),
            nullptr, f64{args.scale}, kKeepAll, kWhole, kWhole, q.dim(2), "BSND", kPrecise, kFullMask,
            query.tensor(), key.tensor(), value.tensor(), dbias);
  };
  const auto with_mask = [&](const auto& dbias) {
    if (mask) return launch(BoolMask{mask}, dbias);
    launch(nullptr, dbias);
  };
  if (bias) {
    with_mask(empty(bias.shape(), bias.dtype()));  // made, and not wanted
  } else {
    with_mask(NoElements{q.dtype()});
  }
  query.finish();
  key.finish();
  value.finish();
}

}  // namespace danceflux::ascend
