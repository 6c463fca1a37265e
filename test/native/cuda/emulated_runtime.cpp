#include "emulated_runtime.h"

#include "emulated_stream.h"

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

/// Whether a stream records; what it was asked for then cannot be recorded, and spoils it.
bool spoiled(cudaStream_t stream) {
  if (!stream || !stream->recording) return false;
  return stream->spoiled = true;
}

cudaError_t note(cudaError_t error) {
  if (machine().sticky != cudaSuccess) error = machine().sticky;
  if (error != cudaSuccess && error != cudaErrorNotReady) last = error;
  return error;
}
}  // namespace
}  // namespace emulated

using emulated::machine;
using emulated::note;
using emulated::spoiled;

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

// Exactly as large as asked, so that a sanitizer sees one byte too many.
cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  if (const cudaError_t error = note(cudaSuccess)) return error;
  const std::lock_guard lock(emulated::mutex);
  if (machine().taken + bytes > machine().memory) return note(cudaErrorMemoryAllocation);
  *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*address) return note(cudaErrorMemoryAllocation);
  std::memset(*address, 0xff, bytes);  // NaN: reading what was never written shows
  emulated::blocks[*address] = bytes;
  machine().taken += bytes;
  return note(cudaSuccess);
}
cudaError_t cudaFree(void* address) {
  if (!address) return note(cudaSuccess);  // what starts the runtime
  const std::lock_guard lock(emulated::mutex);
  const auto block = emulated::blocks.find(address);
  if (block == emulated::blocks.end()) return note(cudaErrorInvalidValue);
  machine().taken -= block->second;
  emulated::blocks.erase(block);
  std::free(address);
  return note(cudaSuccess);
}
// The real ones would become part of the graph, which nobody here wants.
cudaError_t cudaMallocAsync(void** address, std::size_t bytes, cudaStream_t stream) {
  return spoiled(stream) ? note(cudaErrorStreamCaptureUnsupported) : cudaMalloc(address, bytes);
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
  return spoiled(stream) ? note(cudaErrorStreamCaptureUnsupported) : cudaFree(address);
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
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (const cudaError_t error = note(cudaSuccess)) return error;
  if (bytes) emulated::put(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = note(cudaSuccess)) return error;
  if (bytes) emulated::put(stream, [=] { std::memset(address, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = new CUstream_st, note(cudaSuccess);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, note(cudaSuccess); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (spoiled(stream)) return note(cudaErrorStreamCaptureUnsupported);
  return ++machine().waits, note(cudaSuccess);
}

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (const cudaError_t error = note(cudaSuccess)) return error;
  if (!stream || stream->recording || mode != cudaStreamCaptureModeRelaxed)
    return note(cudaErrorInvalidValue);
  stream->recording = new std::vector<std::function<void()>>;
  stream->spoiled = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream || !stream->recording) return note(cudaErrorInvalidValue);
  if (!stream->spoiled) *graph = new CUgraph_st{std::move(*stream->recording)};
  delete stream->recording;
  stream->recording = nullptr;
  return note(*graph ? cudaSuccess : cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return *executable = new CUgraphExec_st{graph->work}, note(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (const cudaError_t error = note(cudaSuccess)) return error;
  if (stream->recording) return note(cudaErrorStreamCaptureUnsupported);
  ++machine().graph_launches;
  for (const auto& work : executable->work) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, note(cudaSuccess); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, note(cudaSuccess); }
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
