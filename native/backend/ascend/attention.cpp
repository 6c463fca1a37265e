// Attention that keeps no score matrix. B batch, H heads, K head width, Lq and Lk query and key tokens. The
// operators take our layout as it is: BSND.
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
  const Result result(*this, out);
  const Shape statistics{q.dim(0), q.dim(2), q.dim(1), kStatistics};
  const Tensor largest = empty(statistics), sum = empty(statistics);
  const Tensor added = attention_bias(bias, args);
  const auto launch = [&](const auto& mask) {
    launch_("attention", ops().aclnnFlashAttentionScore, dense(q), dense(k), dense(v), added, nullptr,
            nullptr, mask, nullptr, f64{args.scale}, kKeepAll, kWhole, kWhole, q.dim(2), "BSND", kPrecise,
            kFullMask, largest, sum, NoElements{q.dtype()}, result.tensor());
  };
  if (args.causal) {
    const Tensor mask = causal_mask(q.dim(1), k.dim(1));
    launch(BoolMask{mask});
  } else {
    launch(nullptr);
  }
  launch_("attention", ops().aclnnLog, first_of(sum), lse);
  launch_("attention", ops().aclnnAdd, lse, first_of(largest), F32{1}, lse);
  result.finish();
  return {};
}

// A weight of the softmax is exp(score - largest) / sum: with the logarithm of the sum of exponentials for
// the largest, the sum is 1.
Declined AscendBackend::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                           const Tensor& dout, const Tensor& out, const Tensor& lse,
                                           const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& bias, const AttentionArgs& args) {
  if (Declined declined = no_attention(q, ops().aclnnFlashAttentionScoreGrad)) return declined;
  if (out.numel() == 0 || k.numel() == 0) return "there are no tokens";
  const Result query(*this, dq, q.dtype()), key(*this, dk, q.dtype()), value(*this, dv, q.dtype());
  const Shape statistics{q.dim(0), q.dim(2), q.dim(1), kStatistics};
  const Tensor largest = empty(statistics), sum = filled(statistics, 1);
  copy(largest, lse.view({q.dim(0), q.dim(2), q.dim(1), 1}).expand(statistics));
  const Tensor added = attention_bias(bias, args);
  const auto launch = [&](const auto& mask, const auto& dbias) {
    launch_("attention_backward", ops().aclnnFlashAttentionScoreGrad, dense(q), dense(k), dense(v),
            dense(dout, q.dtype()), added, nullptr, nullptr, mask, largest, sum, nullptr, dense(out), nullptr,
            f64{args.scale}, kKeepAll, kWhole, kWhole, q.dim(2), "BSND", kPrecise, kFullMask, query.tensor(),
            key.tensor(), value.tensor(), dbias);
  };
  const auto with_mask = [&](const auto& dbias) {
    if (!args.causal) return launch(nullptr, dbias);
    const Tensor mask = causal_mask(q.dim(1), k.dim(1));
    launch(BoolMask{mask}, dbias);
  };
  if (bias) {
    with_mask(empty(bias.shape(), bias.dtype()));  // made, and not wanted
  } else {
    with_mask(NoElements{q.dtype()});
  }
  query.finish();
  key.finish();
  value.finish();
  return {};
}

}  // namespace danceflux::ascend
