#include "emulated_cuda.h"

#include <cstdlib>

#include "backend/cuda/cuda_backend.h"

namespace danceflux::test {

std::shared_ptr<Backend> open_emulated_cuda(const std::string& options_json) {
  setenv("DANCEFLUX_CUDA_LIBRARIES", DANCEFLUX_FAKE_CUDA, 1);
  return std::make_shared<cuda::CudaBackend>(0, cuda::Options::parse(options_json));
}

}  // namespace danceflux::test
