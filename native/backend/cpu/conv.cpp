#include "backend/cpu/cpu_backend.h"
#include "core/error.h"

namespace danceflux::cpu {

void CpuBackend::conv2d(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const ConvArgs&) {
  fail("ERR_DEVICE", "conv2d: not written");
}
void CpuBackend::conv2d_backward_data(const Tensor&, const Tensor&, const Tensor&, const ConvArgs&) {
  fail("ERR_DEVICE", "conv2d: not written");
}
void CpuBackend::conv2d_backward_weight(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const ConvArgs&) {
  fail("ERR_DEVICE", "conv2d: not written");
}

}  // namespace danceflux::cpu
