// Collectives among NPUs through HCCL, behind the Communicator contract.
//
// HCCL has no abort and no deadline that we could set per call, so waits have ours: a thread watches what is
// under way, and when it takes too long the communicator has failed, every wait of the device throws, and
// nothing waits for its streams any more. The process is then to end.
//
// Sums: HCCL adds bf16 in bf16, so 16-bit tensors are widened first. It knows no order of ranks that would be
// ours: an ordered sum gathers all parts and adds them in the tree of ReduceArgs. Of two ranks there is one
// sum only, and HCCL makes it.
#pragma once
#include <memory>

#include "backend/communicator.h"

namespace danceflux::ascend {

/// Throws ERR_DEVICE when `device` is no NPU, ERR_OPTION, ERR_COMMUNICATION when this CANN has no HCCL.
std::unique_ptr<CommunicatorSetup> make_hccl_setup(const std::shared_ptr<Backend>& device,
                                                   const CommunicatorOptions& options);

}  // namespace danceflux::ascend
