// Which compiled instruction set runs. Every file in isa/ is compiled once per set; each set has three
// tables, and this picks among them.
#pragma once
#include <string>
#include <vector>

namespace danceflux::cpu {

struct GemmKernels;       // gemm_kernels.h
struct AttentionKernels;  // attention_kernels.h
struct RowKernels;        // row_kernels.h

/// All kernels of one instruction set.
struct IsaKernels {
  const char* name;  // "portable", "avx2", "avx512", "neon"
  const GemmKernels* gemm;
  const AttentionKernels* attention;
  const RowKernels* rows;
};

/// What was compiled in and this machine (processor and operating system) can run, best first.
const std::vector<IsaKernels>& available_isas();
/// The one of that name, or the best for "". Throws ERR_DEVICE telling what there is.
const IsaKernels& select_isa(const std::string& name);

}  // namespace danceflux::cpu
