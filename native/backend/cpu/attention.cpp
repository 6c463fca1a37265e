#include "backend/cpu/cpu_backend.h"

namespace danceflux::cpu {

Declined CpuBackend::attention(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                               const AttentionArgs&) {
  return "not written";
}
Declined CpuBackend::attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const AttentionArgs&) {
  return "not written";
}

}  // namespace danceflux::cpu
