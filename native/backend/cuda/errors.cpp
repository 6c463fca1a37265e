#include "backend/cuda/errors.h"

#include <cstdio>

#include "core/error.h"

namespace danceflux::cuda {

// Errors up to here are about one call and leave the context as it was: bad arguments, no memory, not ready.
// What a kernel did wrong, and what the hardware did, ends the context.
bool is_lost(cudaError_t error) {
  switch (static_cast<int>(error)) {
    case 0:
    case 600:  // not ready
      return false;
    case 46:   // devices unavailable
    case 214:  // uncorrectable ECC
    case 219:  // NVLink
    case 226:  // contained memory error
      return true;
    default:
      return error >= 700 && error < 800 && error != 701 && error != 704 && error != 705 && error != 708;
  }
}

std::string words_for(cudaError_t error, const std::string& op) {
  return op + ": expected a working device, got " + cudaGetErrorName(error) + ": " +
         cudaGetErrorString(error);
}

void check(cudaError_t error, const std::string& op) {
  if (error == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();  // or the next call would report it again
  if (!is_lost(error)) throw Error("ERR_CUDA", words_for(error, op));
  throw Error(
      "ERR_DEVICE_LOST", words_for(error, op),
      "the error may belong to an earlier op: open the device with synchronous: true, which waits after each "
      "one; a new process is needed to use this device again");
}

std::string size_words(std::size_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
  return text;
}

}  // namespace danceflux::cuda
