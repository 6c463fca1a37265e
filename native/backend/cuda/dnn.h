// cuDNN 9 by its backend interface: graphs of operations, planned once for each shape and kept.
#pragma once
#include <memory>

#include "backend/cuda/cuda_backend.h"

namespace danceflux::cuda {

class Dnn {
 public:
  /// Null where there is no cuDNN.
  static std::unique_ptr<Dnn> open(CudaBackend& device);
  virtual ~Dnn() = default;
  /// As the shortcuts of the same names. False: cuDNN has no plan for it; nothing was written then.
  virtual bool attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& bias, const AttentionArgs& args) = 0;
  virtual bool attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                                  const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const Tensor& bias, const AttentionArgs& args) = 0;
};

}  // namespace danceflux::cuda
