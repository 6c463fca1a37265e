// The vendor's libraries, opened at run time: the plugin loads on a machine that has none of them, and says
// what is missing. Looked for in the folders of DANCEFLUX_CUDA_LIBRARIES (colon separated; the lib folders of
// NVIDIA's wheels, say) and then where the loader looks.
#pragma once
#include <string>
#include <vector>

namespace danceflux::cuda {

struct Library {
  const char* what;                  // "cuBLASLt"
  std::vector<const char*> sonames;  // the first that opens is taken
  const char* brought_by;            // what to install
  const char* without;               // what happens without it
};

const Library& blas_library();
const Library& dnn_library();
const Library& nccl_library();

/// Opened once per process and never closed. Null when there is none; `why` then tells what was tried.
void* open_library(const Library& library, std::string* why);
/// The address of a symbol; throws ERR_PLUGIN_LOAD_FAILED naming library and symbol when it is absent.
void* find_symbol(void* handle, const Library& library, const char* name);
/// The same; null when it is absent (of newer versions only).
void* find_optional_symbol(void* handle, const char* name);

}  // namespace danceflux::cuda
