// Sums and maxima over ranks on the host, shared by the engines whose devices are CPUs.
#pragma once
#include <cstdint>
#include <span>

#include "backend/communicator.h"

namespace danceflux {

/// out[i] = parts[0][i] op parts[1][i] op ..., i < count, in the pairwise tree of ReduceArgs; f32, bf16 or
/// f16, computed in f32 and rounded once. `out` may be one of the parts. At least one part, at most 4096. The
/// vectors of the best instruction set are used; the bits are those of any other.
void reduce_parts(CollectiveReduce op, DType dtype, void* out, std::span<const void* const> parts,
                  std::int64_t count);

}  // namespace danceflux
