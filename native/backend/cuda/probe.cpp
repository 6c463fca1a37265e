#include "backend/cuda/probe.h"

#include <cstdio>
#include <string>

#include "backend/cuda/errors.h"
#include "backend/cuda/libraries.h"

namespace danceflux::cuda {
namespace {

std::string version_words(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void tell(char (&field)[512], const std::string& text) {
  std::snprintf(field, sizeof field, "%s", text.c_str());
}

void append(std::string& list, const std::string& text) { list += (list.empty() ? "" : "; ") + text; }

std::string device_words(int count) {
  std::string words;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    const std::string one = std::string(properties.name) + " (sm_" + std::to_string(properties.major) +
                            std::to_string(properties.minor) + ", " + size_words(properties.totalGlobalMem) +
                            ")";
    // Eight of a kind need not be told eight times.
    if (words.find(one) == std::string::npos) words += (words.empty() ? "" : ", ") + one;
  }
  return (count > 1 ? std::to_string(count) + " x " : "") + words;
}

void look(PluginProbe& found) {
  int driver = 0, runtime = 0, count = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  std::string missing, sources;
  for (const Library* library : {&blas_library(), &dnn_library(), &nccl_library()}) {
    std::string why;
    if (open_library(*library, &why)) continue;
    append(missing, std::string("no ") + library->what + ": " + library->without);
    append(sources, library->brought_by);
  }
  if (driver == 0) {
    found.state = ProbeState::no_device;
    tell(found.message, "no NVIDIA driver (libcuda.so.1)" + (missing.empty() ? "" : "; " + missing));
    tell(found.hint, "install the NVIDIA driver; in a container, start it with the GPUs passed in" +
                         (sources.empty() ? "" : "; " + sources));
    return;
  }
  if (driver < oldest_driver(runtime) || error == cudaErrorInsufficientDriver) {
    found.state = ProbeState::driver_too_old;
    tell(found.message, "expected a driver for CUDA " + version_words(oldest_driver(runtime)) +
                            " or newer, got " + version_words(driver));
    tell(found.hint, "update the NVIDIA driver");
    return;
  }
  if (error != cudaSuccess || count == 0) {
    found.state = ProbeState::no_device;
    tell(found.message, "the driver (CUDA " + version_words(driver) + ") sees no device: " +
                            (error == cudaSuccess ? "none" : cudaGetErrorString(error)));
    tell(found.hint, "CUDA_VISIBLE_DEVICES may hide them; in a container, pass the GPUs in");
    return;
  }
  if (!open_library(blas_library(), nullptr)) {
    found.state = ProbeState::no_device;
    tell(found.message, device_words(count) + "; " + missing);
    tell(found.hint, sources);
    return;
  }
  // Ready means usable: a context, and memory in it.
  if (const cudaError_t failed = cudaFree(nullptr)) {
    found.state = ProbeState::no_device;
    tell(found.message, device_words(count) + ": " + cudaGetErrorString(failed));
    return;
  }
  found.state = ProbeState::ready;
  found.devices = count;
  tell(found.message, device_words(count) + ", driver for CUDA " + version_words(driver) +
                          (missing.empty() ? "" : "; " + missing));
  tell(found.hint, sources);
}

}  // namespace

// Within one major version older drivers run newer runtimes.
int oldest_driver(int runtime_version) { return runtime_version / 1000 * 1000; }

void probe(PluginProbe* found) {
  try {
    look(*found);
  } catch (const std::exception& error) {
    found->state = ProbeState::no_device;
    tell(found->message, error.what());
  }
}

}  // namespace danceflux::cuda
