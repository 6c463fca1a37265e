// The row kernels of this instruction set, gathered.
#include "backend/cpu/row_kernels.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {
constexpr RowKernels kKernels{&elementwise_rows, &convert_rows, &reduce_rows, &norm_rows, &rope_rows};
}

const RowKernels& row_kernels() { return kKernels; }

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
