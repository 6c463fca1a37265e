// Ranks that are threads of one process: a communicator that keeps every letter of the contract and takes
// every liberty that it leaves.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "wrapped_backend.h"

namespace danceflux::test {

/// What the ranks share. A result is written when its event is waited for, not before; what a contract leaves
/// undefined becomes NaN; sums that need not be ordered run from the last rank to the first.
class ThreadWorld : public std::enable_shared_from_this<ThreadWorld> {
 public:
  explicit ThreadWorld(int size) : size_(size), next_(static_cast<std::size_t>(size), 0) {}

  int size() const { return size_; }
  std::shared_ptr<Communicator> communicator(int rank);
  /// A CPU of one thread that knows the world's events.
  std::shared_ptr<WrappedBackend> device() const;
  void abort(const std::string& reason);
  /// Collectives that `rank` has called so far.
  std::size_t calls(int rank);

 private:
  friend class ThreadCommunicator;
  struct Round;
  struct Arrival;
  Event arrive(int rank, const std::string& operation, const Tensor& out, const Tensor& in);

  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<Round>> rounds_;
  std::vector<std::size_t> next_;  // round of each rank's next call
  std::string failure_;
};

/// body(rank, communicator, device) in a thread for each rank; the first failure of any is thrown here, after
/// all have ended.
void on_ranks(
    int size,
    const std::function<void(ThreadWorld& world, int rank, const std::shared_ptr<Communicator>& communicator,
                             const std::shared_ptr<Backend>& device)>& body);

}  // namespace danceflux::test
