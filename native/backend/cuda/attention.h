// What the attention kernels share: where a head's rows lie, and what stands between queries and keys.
// B batch, H heads, K head width, Lq and Lk query and key tokens.
#pragma once
#include "backend/cuda/cuda_backend.h"

namespace danceflux::cuda {

/// [B, L, H, K], dense along K.
template <class T>
struct HeadRows {
  T* base;
  std::int64_t batch, token, head;  // steps
  DF_BOTH T* row(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return base + b * batch + h * head + i * token;
  }
};
template <class T>
HeadRows<T> head_rows(const Tensor& x) {
  return {static_cast<T*>(x.address()), x.strides()[0], x.strides()[1], x.strides()[2]};
}

/// [1 or B, H, Lq, Lk] or null.
template <class T>
struct ScoreBias {
  const T* base = nullptr;
  std::int64_t batch = 0, head = 0, query = 0, key = 0;
};
template <class T>
ScoreBias<T> score_bias(const Tensor& x) {
  if (!x.defined()) return {};
  return {static_cast<const T*>(x.address()), x.dim(0) == 1 ? 0 : x.strides()[0], x.strides()[1],
          x.strides()[2], x.strides()[3]};
}

struct AttentionShape {
  std::int64_t batch, heads, queries, keys, width;
  float scale;
  bool causal;
};

inline AttentionShape attention_shape(const Tensor& q, const Tensor& k, const AttentionArgs& args) {
  return {q.dim(0), q.dim(2), q.dim(1), k.dim(1), q.dim(3), args.scale, args.causal};
}

/// What the gradients of attention are made of; delta [B, H, Lq] is the sum over the head of dout * out.
struct AttentionGradients {
  const Tensor &dq, &dk, &dv, &dout, &lse, &q, &k, &v, &bias, &delta;
};

/// By tensor cores; false: these shapes or layouts are not for them.
bool attention_by_tensor_cores(CudaBackend& device, const Tensor& out, const Tensor& lse, const Tensor& q,
                               const Tensor& k, const Tensor& v, const Tensor& bias,
                               const AttentionArgs& args);
/// Forward, for heads that are too wide for them; false: not these, or there is a bias or a mask.
bool attention_by_products(CudaBackend& device, const Tensor& out, const Tensor& lse, const Tensor& q,
                           const Tensor& k, const Tensor& v, const Tensor& bias, const AttentionArgs& args);
bool attention_backward_by_tensor_cores(CudaBackend& device, const AttentionGradients& g,
                                        const AttentionShape& s);

}  // namespace danceflux::cuda
