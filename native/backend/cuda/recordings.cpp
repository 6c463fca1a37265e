#include "backend/cuda/recordings.h"

#include <algorithm>
#include <exception>

#include "backend/cuda/cuda_backend.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

/// A model is asked for a few shapes at a time: two kinds of batches, training and evaluation.
constexpr std::size_t kKept = 8;

/// Returns where the work may be asked for once more without being recorded.
void rethrow_unless_refused(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    if (error.code == "ERR_DEVICE_LOST" || error.code == "ERR_ABORTED") throw;
  }
}

}  // namespace

/// Where a tensor of a recording lies. Not a tensor: those keep their device alive.
struct Recordings::Place {
  void* address;
  Shape shape;
  DType dtype;
  std::size_t bytes() const { return static_cast<std::size_t>(shape.numel()) * size_of(dtype); }
};

struct Recordings::Recording {
  std::unique_ptr<Pool> pool;
  cudaGraphExec_t executable = nullptr;
  std::vector<Place> inputs, outputs;
  ~Recording() {
    if (executable) cudaGraphExecDestroy(executable);
  }
};

struct Recordings::Entry {
  std::unique_ptr<Recording> recording;
  bool refused = false;
  std::uint64_t used = 0;  // turn
};

Recordings::Recordings(CudaBackend& device) : device_(device) {}
Recordings::~Recordings() = default;

void Recordings::not_recordable(const char* what) const {
  require(!recording_, "ERR_CUDA", what, ": expected work that can be recorded, got one for the host");
}

void* Recordings::allocate(std::size_t bytes) { return recording_->pool->allocate(bytes); }

bool Recordings::release(void* address, std::size_t bytes) noexcept {
  Pool* owner = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto found = owners_.find(address);
    if (found == owners_.end()) return false;
    owner = found->second;
  }
  owner->release(address, bytes);
  return true;
}

MemoryStats Recordings::memory() const {
  MemoryStats sum;
  for (const auto& [key, entry] : entries_) {
    if (!entry.recording) continue;
    const MemoryStats stats = entry.recording->pool->stats();
    sum.held += stats.held;
    sum.system_allocations += stats.system_allocations;
  }
  sum.used = sum.peak = sum.held;  // nobody else gets any of it
  return sum;
}

void Recordings::forget() {
  const auto kept = [](const auto& entry) { return entry.second.recording != nullptr; };
  if (std::none_of(entries_.begin(), entries_.end(), kept)) return;
  check(cudaStreamSynchronize(device_.stream()), "graphs");
  for (auto& [key, entry] : entries_) entry.recording.reset();
}

bool Recordings::give_way() {
  if (gave_way_) return false;
  gave_way_ = true;
  forget();
  entries_.clear();
  return true;
}

void Recordings::drop_oldest() {
  const auto oldest = std::min_element(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
    return a.second.used < b.second.used;
  });
  if (oldest->second.recording) check(cudaStreamSynchronize(device_.stream()), "graphs");
  entries_.erase(oldest);
}

std::vector<Tensor> Recordings::run(const std::string& key, std::span<const Tensor> inputs,
                                    const Backend::Recurring& work) {
  if (recording_ || gave_way_) return work(inputs);
  const auto [place, fresh] = entries_.try_emplace(key);
  place->second.used = ++turn_;
  if (fresh) {
    if (entries_.size() > kKept) drop_oldest();
    return work(inputs);
  }
  if (place->second.refused || (!place->second.recording && !record(place->second, inputs, work)))
    return work(inputs);
  std::vector<Tensor> given, outputs;
  for (const Tensor& input : inputs) given.push_back(device_.dense(input));
  for (const Place& output : std::vector(place->second.recording->outputs))
    outputs.push_back(device_.empty(output.shape, output.dtype));
  if (gave_way_) return work(inputs);  // to make room for these
  replay(*place->second.recording, given, outputs);
  return outputs;
}

/// False: the work cannot be recorded, and nothing was done.
bool Recordings::record(Entry& entry, std::span<const Tensor> inputs, const Backend::Recurring& work) {
  const cudaStream_t stream = device_.stream();
  auto made = std::make_unique<Recording>();
  made->pool = std::make_unique<Pool>(
      [this, pool = &made->pool](std::size_t bytes) -> void* {
        void* address = nullptr;
        const cudaError_t error = cudaMalloc(&address, bytes);
        if (error == cudaErrorMemoryAllocation) {
          cudaGetLastError();
          return nullptr;
        }
        check(error, "allocate");
        const std::lock_guard lock(mutex_);
        owners_[address] = pool->get();
        return address;
      },
      [this](void* address, std::size_t) {
        {
          const std::lock_guard lock(mutex_);
          owners_.erase(address);
        }
        cudaFree(address);
      });
  recording_ = made.get();
  bool capturing = false;
  cudaGraph_t graph = nullptr;
  std::exception_ptr thrown;
  try {
    std::vector<Tensor> fixed;
    for (const Tensor& input : inputs) {
      fixed.push_back(device_.empty(input.shape(), input.dtype()));
      made->inputs.push_back({fixed.back().address(), input.shape(), input.dtype()});
    }
    // Relaxed: memory is taken on the way.
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "graphs");
    capturing = true;
    std::vector<Tensor> outputs = work(fixed);
    for (Tensor& output : outputs) {
      if (!output.is_contiguous()) {
        const Tensor packed = device_.empty(output.shape(), output.dtype());
        device_.copy(packed, output);
        output = packed;
      }
      made->outputs.push_back({output.address(), output.shape(), output.dtype()});
    }
    capturing = false;
    check(cudaStreamEndCapture(stream, &graph), "graphs");
    check(cudaGraphInstantiate(&made->executable, graph, 0), "graphs");
  } catch (...) {
    thrown = std::current_exception();
    if (capturing) cudaStreamEndCapture(stream, &graph);
    cudaGetLastError();
  }
  if (graph) cudaGraphDestroy(graph);
  recording_ = nullptr;
  // A tensor outlives the recording: it goes back to this pool, and another replay would change it.
  const bool held = made->pool->stats().used != 0;
  if (held) kept_back_.push_back(std::move(made->pool));
  if (thrown) rethrow_unless_refused(thrown);
  entry.refused = thrown || held;
  if (!entry.refused) entry.recording = std::move(made);
  return !entry.refused;
}

void Recordings::replay(const Recording& recording, std::span<const Tensor> inputs,
                        std::span<const Tensor> outputs) {
  const cudaStream_t stream = device_.stream();
  device_.enter("graph");
  const auto copy = [&](void* to, const void* from, const Place& place) {
    check(cudaMemcpyAsync(to, from, place.bytes(), cudaMemcpyDeviceToDevice, stream), "graph");
  };
  for (std::size_t i = 0; i < inputs.size(); ++i)
    copy(recording.inputs[i].address, inputs[i].address(), recording.inputs[i]);
  check(cudaGraphLaunch(recording.executable, stream), "graph");
  for (std::size_t i = 0; i < outputs.size(); ++i)
    copy(outputs[i].address(), recording.outputs[i].address, recording.outputs[i]);
  device_.launched();
}

}  // namespace danceflux::cuda
