// cuDNN 9 by its backend interface: graphs of operations, planned once for each shape and kept. Attention is
// one operation where that is offered, else a graph of small ones, else not cuDNN's. Engines that give other
// bits from run to run, and such as multiply f32 in fewer bits, are passed over unless asked for. In strict
// an image is given to it alone: how it cuts the work must not depend on the batch.
#pragma once
#include <memory>
#include <string>

#include "backend/cuda/cuda_backend.h"

namespace danceflux::cuda {

enum class ConvPass : std::uint8_t { forward, data, weight };

class Dnn {
 public:
  /// Null where there is no cuDNN 9.
  static std::unique_ptr<Dnn> open(CudaBackend& device);
  virtual ~Dnn() = default;
  /// As the shortcuts of the same names. False: cuDNN has no plan for it; nothing was written then.
  virtual bool attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                         const Tensor& v, const Tensor& bias, const AttentionArgs& args) = 0;
  virtual bool attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                                  const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const Tensor& bias, const AttentionArgs& args) = 0;
  /// x [B, C, h, w], weight [O, C, kh, kw], y [B, O, oh, ow], of which `pass` writes one; no bias. All of one
  /// dtype, but the weight's gradient, which is f32 or that dtype.
  virtual bool conv(ConvPass pass, const Tensor& x, const Tensor& weight, const Tensor& y,
                    const ConvArgs& args) = 0;
  /// Plans made, and shapes that have none, so far.
  virtual std::size_t plans() const = 0;
  /// Its version and the ways that attention has gone so far, for people; from any thread.
  virtual std::string description() const = 0;
};

}  // namespace danceflux::cuda
