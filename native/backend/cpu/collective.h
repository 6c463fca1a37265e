// Collectives between the ranks of one host, through memory that they share. Built in.
//
// A tensor goes through the segment piece by piece: each rank stages what the others need of a piece, reduces
// its own slice of it, and collects the slices that others reduced. Pieces overlap, so no rank waits for
// another that is in step; they are small, so the segment stays in the processor's cache and each tensor is
// read and written once.
#pragma once
#include <memory>

#include "backend/communicator.h"

namespace danceflux::cpu {

/// Engine options: slotKiB (64 to 65536, a multiple of 4; bytes of a piece, of which each rank has four),
/// folder (of the segment's file; default none: see SegmentPlan). Throws ERR_OPTION, ERR_DEVICE.
std::unique_ptr<CommunicatorSetup> make_shared_memory_setup(const std::shared_ptr<Backend>& device,
                                                            const CommunicatorOptions& options);

}  // namespace danceflux::cpu
