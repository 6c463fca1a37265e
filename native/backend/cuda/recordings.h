// Work of fixed shape that is asked for again and again, as CUDA graphs: what it puts on the stream is
// recorded once, and from then on started with one call.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device_code.h"
#include "backend/pool.h"

namespace danceflux::cuda {

class CudaBackend;

/// Belongs to the device's thread, but for release() and memory().
class Recordings {
 public:
  explicit Recordings(CudaBackend& device);
  ~Recordings();

  /// As Backend::recurring: the first time as it is, so that libraries choose their plans and take their
  /// workspaces; recorded the second time; replayed from then on.
  std::vector<Tensor> run(const std::string& key, std::span<const Tensor> inputs,
                          const Backend::Recurring& work);
  /// Drops all recordings, to be made again: something that they were made with is about to go. Waits for the
  /// stream.
  void forget();
  /// The same for good, for there is not enough memory. False: there was nothing to drop.
  bool give_way();
  /// What a recording cannot hold must not be asked for: see not_recordable().
  bool recording() const { return recording_ != nullptr; }
  /// Throws while recording: `what` would be done once, and not again by a replay.
  void not_recordable(const char* what) const;
  /// Memory of what is being recorded: its own, for nobody else may get it between two replays.
  void* allocate(std::size_t bytes);
  /// False: not of a recording.
  bool release(void* address, std::size_t bytes) noexcept;
  /// Of all recordings together.
  MemoryStats memory() const;

 private:
  struct Place;
  struct Recording;
  struct Entry;
  bool record(Entry& entry, std::span<const Tensor> inputs, const Backend::Recurring& work);
  void replay(const Recording& recording, std::span<const Tensor> inputs, std::span<const Tensor> outputs);
  void drop_oldest();

  CudaBackend& device_;
  mutable std::mutex mutex_;
  std::unordered_map<void*, Pool*> owners_;  // of every block that a recording took; pools use it to the end
  std::map<std::string, Entry> entries_;
  std::vector<std::unique_ptr<Pool>>
      kept_back_;  // of recordings that failed while somebody held their memory
  Recording* recording_ = nullptr;
  bool gave_way_ = false;
  std::uint64_t turn_ = 0;
};

}  // namespace danceflux::cuda
