// Attention. B batch, H heads, K head width, Lq and Lk query and key tokens.
#include <limits>

#include "ops/check.h"
#include "ops/composition.h"
#include "ops/ops.h"

namespace danceflux::ops {
namespace {

void check_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias) {
  check_activation("attention", q);
  check_rank("attention", "q [B, Lq, H, K]", q, 4);
  check_beside("attention", q, k);
  check_beside("attention", q, v);
  check_rank("attention", "k [B, Lk, H, K]", k, 4);
  check_shape("attention", "k", k, {q.dim(0), k.dim(1), q.dim(2), q.dim(3)});
  check_shape("attention", "v", v, k.shape());
  if (!bias) return;
  check_beside("attention", q, bias);
  check_rank("attention", "bias [1 or B, H, Lq, Lk]", bias, 4);
  const bool shared = bias.dim(0) == 1;
  check_shape("attention", "bias", bias, {shared ? 1 : q.dim(0), q.dim(2), q.dim(1), k.dim(1)});
}

/// 0 where query i sees key j, -inf where j > i.
Tensor causal_bias(Backend& device, std::int64_t queries, std::int64_t keys, DType dtype) {
  std::vector<float> values(static_cast<std::size_t>(queries * keys), 0);
  for (std::int64_t i = 0; i < queries; ++i) {
    for (std::int64_t j = i + 1; j < keys; ++j) {
      values[static_cast<std::size_t>(i * keys + j)] = -std::numeric_limits<float>::infinity();
    }
  }
  return from_host(device, {queries, keys}, values, dtype);
}

struct AttentionSaved {
  Tensor out, lse, q, k, v, bias;
  AttentionArgs args;
};

void attention_gradient(const AttentionSaved& saved, Gradients& gradients) {
  const auto& [out, lse, q, k, v, bias, args] = saved;
  Backend& device = backend_of(q);
  if (!gradients.wanted(3)) {  // the kernels know no gradient of the bias
    Tensor dq = gradients.place(0, q), dk = gradients.place(1, k), dv = gradients.place(2, v);
    const Tensor dout = gradients.output();
    if (device.taken("attention_backward",
                     device.attention_backward(dq, dk, dv, dout, out, lse, q, k, v, bias, args))) {
      gradients.add(0, std::move(dq));
      gradients.add(1, std::move(dk));
      gradients.add(2, std::move(dv));
      return;
    }
  }
  const auto compose = [&args = saved.args](std::span<const Tensor> in) {
    return composed::attention(in[0], in[1], in[2], in[3], args);
  };
  composition_gradient(compose, {q, k, v, bias}, gradients);
}

}  // namespace

Tensor composed::attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                           const AttentionArgs& args) {
  Backend& device = enter("attention", q);
  check_attention(q, k, v, bias);
  // As the kernels do: scores and weights keep all bits, only the result is rounded.
  if (q.dtype() != DType::f32) {
    const auto wide = [](const Tensor& x) { return x ? cast(x, DType::f32) : x; };
    return cast(composed::attention(wide(q), wide(k), wide(v), wide(bias), args), q.dtype());
  }
  Tensor scores = matmul(permute(q, {0, 2, 1, 3}), permute(k, {0, 2, 3, 1}), args.scale);
  if (bias) scores = add(scores, bias);
  if (args.causal) scores = add(scores, causal_bias(device, q.dim(1), k.dim(1), q.dtype()));
  return contiguous(permute(matmul(softmax(scores), permute(v, {0, 2, 1, 3})), {0, 2, 1, 3}));
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                 const AttentionArgs& args) {
  Backend& device = enter("attention", q);
  check_attention(q, k, v, bias);
  const Tensor out = like(q), lse = device.empty({q.dim(0), q.dim(2), q.dim(1)});
  if (!device.taken("attention", device.attention(out, lse, q, k, v, bias, args))) {
    // The backward kernel needs lse: it has no permission without the forward one.
    const Tensor whole = in_parts([&] { return composed::attention(q, k, v, bias, args); });
    observed("attention", whole, q, k, v, bias);
    return whole;
  }
  observed("attention", out, q, k, v, bias);
  if (!tracked(q, k, v, bias)) return out;
  const AttentionSaved saved{out, lse, q, k, v, bias, args};
  return recorded("attention", out, {q, k, v, bias},
                  [saved](Gradients& gradients) { attention_gradient(saved, gradients); });
}

}  // namespace danceflux::ops
