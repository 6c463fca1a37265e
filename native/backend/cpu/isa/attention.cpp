#include "backend/cpu/attention_kernels.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {};
}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
