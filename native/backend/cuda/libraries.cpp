#include "backend/cuda/libraries.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>

#include "core/error.h"

namespace danceflux::cuda {
namespace {

std::vector<std::string> folders() {
  const char* value = std::getenv("DANCEFLUX_CUDA_LIBRARIES");
  std::istringstream stream(value ? value : "");
  std::vector<std::string> list;
  for (std::string folder; std::getline(stream, folder, ':');)
    if (!folder.empty()) list.push_back(folder + "/");
  list.emplace_back();
  return list;
}

struct Opened {
  void* handle = nullptr;
  std::string why;
};

Opened open_first(const Library& library) {
  Opened opened;
  for (const std::string& folder : folders()) {
    for (const char* soname : library.sonames) {
      opened.handle = dlopen((folder + soname).c_str(), RTLD_NOW | RTLD_LOCAL);
      if (opened.handle) return opened;
      const char* words = dlerror();
      // The loader's words for the last place; of a folder, only what is there and does not open.
      if (folder.empty() || (words && std::string(words).find("No such file") == std::string::npos))
        opened.why += (opened.why.empty() ? "" : "; ") + std::string(words ? words : soname);
    }
  }
  return opened;
}

}  // namespace

const Library& blas_library() {
  static const Library library{"cuBLASLt",
                               {"libcublasLt.so.13", "libcublasLt.so.12"},
                               "the CUDA toolkit, or the wheel nvidia-cublas",
                               "no product of matrices: the device cannot be used"};
  return library;
}
const Library& dnn_library() {
  static const Library library{"cuDNN 9",
                               {"libcudnn.so.9"},
                               "cuDNN 9, or the wheel nvidia-cudnn-cu13",
                               "attention and convolution take the plugin's own, slower kernels"};
  return library;
}
const Library& nccl_library() {
  static const Library library{"NCCL 2",
                               {"libnccl.so.2"},
                               "NCCL 2, or the wheel nvidia-nccl-cu13",
                               "no collectives between devices: one device per job"};
  return library;
}

void* open_library(const Library& library, std::string* why) {
  static std::mutex& mutex = *new std::mutex;
  static std::map<const Library*, Opened>& all = *new std::map<const Library*, Opened>;
  const std::lock_guard lock(mutex);
  Opened& opened = all[&library];
  // One that failed is tried again: the folders may have been named meanwhile.
  if (!opened.handle) opened = open_first(library);
  if (!opened.handle && why) *why = opened.why;
  return opened.handle;
}

void* find_symbol(void* handle, const Library& library, const char* name) {
  void* symbol = dlsym(handle, name);
  if (!symbol)
    throw Error("ERR_PLUGIN_LOAD_FAILED",
                std::string(library.what) + ": expected a symbol " + name + ", got a library without it",
                std::string("install ") + library.brought_by);
  return symbol;
}

void* find_optional_symbol(void* handle, const char* name) { return dlsym(handle, name); }

}  // namespace danceflux::cuda
