// What goes wrong on a device, in words.
#pragma once
#include <string>

#include "backend/cuda/device_code.h"

namespace danceflux::cuda {

/// No call on this device will succeed any more in this process.
bool is_lost(cudaError_t error);

/// "matmul: expected a working device, got cudaErrorIllegalAddress: an illegal memory access was encountered"
std::string words_for(cudaError_t error, const std::string& op);

/// Throws ERR_CUDA, or ERR_DEVICE_LOST with what to do, unless all is well.
void check(cudaError_t error, const std::string& op);

/// Bytes for people: "1.5 GiB".
std::string size_words(std::size_t bytes);

}  // namespace danceflux::cuda
