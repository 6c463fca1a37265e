// NCCL's functions, found at run time.
#pragma once
#include <nccl.h>

#include "backend/cuda/libraries.h"
#include "core/error.h"

namespace danceflux::cuda {

// clang-format off
#define DANCEFLUX_NCCL_FUNCTIONS(X) \
  X(ncclGetVersion) X(ncclGetUniqueId) X(ncclCommInitRankConfig) X(ncclCommGetAsyncError) X(ncclCommAbort) \
  X(ncclCommDestroy) X(ncclAllReduce) X(ncclReduceScatter) X(ncclAllGather) X(ncclBroadcast) X(ncclSend) \
  X(ncclRecv) X(ncclGroupStart) X(ncclGroupEnd) X(ncclGetErrorString) X(ncclGetLastError)
// clang-format on

struct NcclFunctions {
#define DF_MEMBER(name) decltype(&::name) name = nullptr;
  DANCEFLUX_NCCL_FUNCTIONS(DF_MEMBER)
#undef DF_MEMBER

  static const NcclFunctions& get() {
    static const NcclFunctions functions;
    return functions;
  }

 private:
  NcclFunctions() {
    std::string why;
    void* handle = open_library(nccl_library(), &why);
    if (!handle)
      throw Error("ERR_PLUGIN_LOAD_FAILED", "nccl: expected NCCL 2, got none: " + why,
                  std::string("install ") + nccl_library().brought_by);
#define DF_FIND(name) name = reinterpret_cast<decltype(name)>(find_symbol(handle, nccl_library(), #name));
    DANCEFLUX_NCCL_FUNCTIONS(DF_FIND)
#undef DF_FIND
  }
};

}  // namespace danceflux::cuda
