#include "emulated_runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace emulated {

Machine& machine() {
  static Machine& one = *new Machine;
  return one;
}

namespace {
std::mutex mutex;
std::map<void*, std::size_t> blocks;
thread_local cudaError_t last = cudaSuccess;

cudaError_t note(cudaError_t error) {
  if (machine().sticky != cudaSuccess) error = machine().sticky;
  if (error != cudaSuccess && error != cudaErrorNotReady) last = error;
  return error;
}
}  // namespace
}  // namespace emulated

using emulated::machine;
using emulated::note;

cudaError_t cudaGetDeviceCount(int* count) {
  int driver = machine().driver_version;
  *count = 0;
  if (driver == 0) return note(cudaErrorInsufficientDriver);
  if (driver < 12000) return note(cudaErrorInsufficientDriver);
  *count = machine().devices;
  return note(*count ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= machine().devices) return note(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated");
  properties->totalGlobalMem = machine().memory;
  properties->major = 9;
  properties->multiProcessorCount = 4;
  return note(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = machine().driver_version, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  return note(device >= 0 && device < machine().devices ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaFree(void*) { return note(cudaSuccess); }  // called with null only, to start the runtime

// Exactly as large as asked, so that a sanitizer sees one byte too many.
cudaError_t cudaMallocAsync(void** address, std::size_t bytes, cudaStream_t) {
  const std::lock_guard lock(emulated::mutex);
  if (machine().taken + bytes > machine().memory) return note(cudaErrorMemoryAllocation);
  *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*address) return note(cudaErrorMemoryAllocation);
  std::memset(*address, 0xff, bytes);  // NaN: reading what was never written shows
  emulated::blocks[*address] = bytes;
  machine().taken += bytes;
  return note(cudaSuccess);
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t) {
  const std::lock_guard lock(emulated::mutex);
  const auto block = emulated::blocks.find(address);
  if (block == emulated::blocks.end()) return note(cudaErrorInvalidValue);
  machine().taken -= block->second;
  emulated::blocks.erase(block);
  std::free(address);
  return note(cudaSuccess);
}
cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
  *address = std::malloc(bytes);
  return note(*address ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* address) { return std::free(address), note(cudaSuccess); }
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = machine().memory;
  *free = *total - machine().taken;
  return note(cudaSuccess);
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  return *pool = nullptr, note(cudaSuccess);
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return note(cudaSuccess); }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return note(cudaSuccess); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (const cudaError_t error = note(cudaSuccess)) return error;
  if (bytes) std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t) {
  if (const cudaError_t error = note(cudaSuccess)) return error;
  if (bytes) std::memset(address, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = nullptr, note(cudaSuccess);
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return note(cudaSuccess); }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return ++machine().waits, note(cudaSuccess); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return note(cudaSuccess); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = nullptr, note(cudaSuccess);
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return note(cudaSuccess); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return note(cudaSuccess); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return ++machine().waits, note(cudaSuccess); }
cudaError_t cudaEventQuery(cudaEvent_t) { return note(cudaSuccess); }
cudaError_t cudaGetLastError() {
  const cudaError_t error = emulated::last;
  emulated::last = cudaSuccess;
  return machine().sticky != cudaSuccess ? machine().sticky.load() : error;
}
cudaError_t cudaPeekAtLastError() {
  return machine().sticky != cudaSuccess ? machine().sticky.load() : emulated::last;
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    default:
      return "cudaError";
  }
}
const char* cudaGetErrorString(cudaError_t) { return "as planted by a test"; }
