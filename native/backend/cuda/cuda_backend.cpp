// Memory, the stream and errors.
#include "backend/cuda/cuda_backend.h"

#include <algorithm>

#include "backend/cuda/blas.h"
#include "backend/cuda/dnn.h"
#include "backend/cuda/errors.h"
#include "backend/cuda/events.h"
#include "backend/cuda/recordings.h"
#include "backend/cuda/staging.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

/// The device that this thread talks to.
thread_local int current_device = -1;

cudaError_t make_current(int index) {
  if (current_device == index) return cudaSuccess;
  const cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) current_device = index;
  return error;
}

std::string describe(int index) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "open");
  return std::string(properties.name) + ", sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor) + ", " + std::to_string(properties.multiProcessorCount) +
         " multiprocessors, " + size_words(properties.totalGlobalMem);
}

}  // namespace

CudaBackend::CudaBackend(int index, const Options& options) : index_(index), options_(options) {
  check(make_current(index), "open");
  description_ = describe(index);
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "open");
  // What the driver's pool was given it keeps: our own pool decides what goes back to the system.
  cudaMemPool_t system = nullptr;
  std::uint64_t keep = ~std::uint64_t{0};
  check(cudaDeviceGetDefaultMemPool(&system, index), "open");
  check(cudaMemPoolSetAttribute(system, cudaMemPoolAttrReleaseThreshold, &keep), "open");
  pool_ = std::make_unique<Pool>(
      [this](std::size_t bytes) -> void* {
        void* address = nullptr;
        const cudaError_t error = cudaMallocAsync(&address, bytes, stream_);
        if (error == cudaSuccess) return address;
        if (error != cudaErrorMemoryAllocation) check(error, "allocate");
        cudaGetLastError();
        return nullptr;
      },
      [this](void* address, std::size_t) { cudaFreeAsync(address, stream_); });
  recordings_ = std::make_unique<Recordings>(*this);
  staging_ = std::make_unique<Staging>();
  blas_ = std::make_unique<Blas>(*this);
  dnn_ = Dnn::open(*this);
}

CudaBackend::~CudaBackend() {
  make_current(index_);
  if (stream_) cudaStreamSynchronize(stream_);
  dnn_.reset();
  blas_.reset();
  recordings_.reset();
  staging_.reset();
  pool_.reset();
  if (stream_) cudaStreamDestroy(stream_);
}

std::string CudaBackend::description() const {
  return dnn_ ? description_ + ", " + dnn_->description() : description_;
}

void CudaBackend::enter(const char* op) {
  op_ = op;
  check(make_current(index_), op);
}

void CudaBackend::launched() {
  check(cudaPeekAtLastError(), op_);
  if (options_.synchronous) check(cudaStreamSynchronize(stream_), op_);
}

// ---- memory
// -----------------------------------------------------------------------------------------------------------

void* CudaBackend::allocate(std::size_t bytes) {
  enter("allocate");
  if (recordings_->recording()) return recordings_->allocate(bytes);
  try {
    return pool_->allocate(bytes);
  } catch (const Error& error) {
    if (error.code != "ERR_MEMORY") throw;
    if (recordings_->give_way()) return allocate(bytes);
    std::size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) throw;
    const MemoryStats stats = pool_->stats();
    throw Error("ERR_MEMORY",
                "allocate: expected " + size_words(bytes) + " on " + name() + ", got none; " +
                    size_words(stats.used) + " in use, " + size_words(stats.held) + " held, " +
                    size_words(free) + " of " + size_words(total) + " free on the device",
                error.hint);
  }
}

void CudaBackend::release(void* address, std::size_t bytes) noexcept {
  if (!recordings_->release(address, bytes)) pool_->release(address, bytes);
}

MemoryStats CudaBackend::memory() const {
  MemoryStats stats = pool_->stats();
  const MemoryStats recorded = recordings_->memory();
  stats.used += recorded.used;
  stats.peak += recorded.peak;
  stats.held += recorded.held;
  stats.system_allocations += recorded.system_allocations;
  return stats;
}
std::optional<std::size_t> CudaBackend::free_memory() const {
  std::size_t free = 0, total = 0;
  if (make_current(index_) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess) return free;
  cudaGetLastError();
  return {};
}
void CudaBackend::reset_peak() { pool_->reset_peak(); }

void CudaBackend::trim() {
  enter("trim");
  recordings_->forget();
  pool_->trim();
  check(cudaStreamSynchronize(stream_), "trim");
  cudaMemPool_t system = nullptr;
  check(cudaDeviceGetDefaultMemPool(&system, index_), "trim");
  check(cudaMemPoolTrimTo(system, 0), "trim");
}

Tensor CudaBackend::dense(const Tensor& x) {
  if (!x.defined() || x.is_contiguous()) return x;
  const Tensor packed = empty(x.shape(), x.dtype());
  copy(packed, x);
  return packed;
}

std::vector<Tensor> CudaBackend::recurring(const std::string& key, std::span<const Tensor> inputs,
                                           const Recurring& work) {
  // One op at a time is what `synchronous` asks for.
  if (!options_.graphs || options_.synchronous) return work(inputs);
  return recordings_->run(key, inputs, work);
}

void CudaBackend::workspace_changes() {
  recordings_->not_recordable("workspace");
  recordings_->forget();
}

// ---- to and from the host
// -----------------------------------------------------------------------------------------------

void CudaBackend::upload(const Tensor& tensor, const void* host) {
  enter("upload");
  recordings_->not_recordable("upload");
  staging_->upload(tensor.address(), host, tensor.bytes(), stream_);
  launched();
}

void CudaBackend::download(void* host, const Tensor& tensor) {
  const std::string op = std::string("download after ") + op_;
  enter("download");
  recordings_->not_recordable("download");
  try {
    staging_->download(host, tensor.address(), tensor.bytes(), stream_);
  } catch (const Error& error) {
    throw Error(error.code, op + ", " + error.what(), error.hint);
  }
  wait_and_tell();
}

void CudaBackend::synchronize() {
  const std::string op = std::string("synchronize after ") + op_;
  enter("synchronize");
  recordings_->not_recordable("synchronize");
  check(cudaStreamSynchronize(stream_), op);
  wait_and_tell();
}

// ---- events
// ---------------------------------------------------------------------------------------------------------------

Event CudaBackend::record() {
  enter("record");
  recordings_->not_recordable("record");
  const auto event = std::make_shared<StreamEvent>();
  check(cudaEventRecord(event->get(), stream_), "record");
  return {event};
}

void CudaBackend::wait(const Event& event) {
  enter("wait");
  recordings_->not_recordable("wait");
  if (!event.handle) return;
  const auto& point = *static_cast<const StreamEvent*>(event.handle.get());
  if (point.alive) {
    (*point.alive)();
    watch(point.alive);
  }
  check(cudaStreamWaitEvent(stream_, point.get(), 0), "wait");
}

void CudaBackend::watch(std::weak_ptr<const std::function<void()>> alive) {
  const auto same = [&](const auto& known) {
    return !known.owner_before(alive) && !alive.owner_before(known);
  };
  if (std::none_of(watched_.begin(), watched_.end(), same)) watched_.push_back(std::move(alive));
}

void CudaBackend::wait_and_tell() {
  std::erase_if(watched_, [](const auto& known) { return known.expired(); });
  for (const auto& known : std::vector(watched_))
    if (const auto alive = known.lock()) (*alive)();
}

}  // namespace danceflux::cuda
