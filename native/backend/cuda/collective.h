// NCCL behind the Communicator contract.
#pragma once
#include "backend/communicator.h"
#include "backend/cuda/cuda_backend.h"

namespace danceflux::cuda {

/// Options of the engine (JSON): minCtas, maxCtas. What NCCL reads from the environment is set there before
/// it is opened (lib/distributed/options.ts). Throws ERR_OPTION; ERR_PLUGIN_LOAD_FAILED where there is no
/// NCCL; ERR_DEVICE when `device` is not a CUDA device.
std::unique_ptr<CommunicatorSetup> make_nccl_setup(const std::shared_ptr<Backend>& device,
                                                   const CommunicatorOptions& options);

/// out [n] = sum over parts [ranks, n] in the pairwise tree of ReduceArgs. On `stream`.
void sum_parts(cudaStream_t stream, float* out, const float* parts, std::int64_t count, int ranks);
/// out = x rounded to `dtype` (f32: as it is). On `stream`.
void round_to(cudaStream_t stream, void* out, DType dtype, const float* x, std::int64_t count);

}  // namespace danceflux::cuda
