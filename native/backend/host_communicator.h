// What every engine of collectives between CPU devices has in common: checks, the numbering of calls, a
// thread as the stream of its own, and how a failure stays. An engine only moves bytes.
#pragma once
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "backend/communicator.h"
#include "backend/host_event.h"

namespace danceflux {

enum class CollectiveKind : std::uint8_t { all_reduce, reduce_scatter, all_gather, broadcast, barrier };

/// One call, checked.
struct CollectiveCall {
  CollectiveKind kind = CollectiveKind::barrier;
  std::uint64_t number = 0;  // of the communicator's calls, from 1
  Tensor out, x;             // the same tensor where the call is in place
  ReduceArgs reduce;
  int root = 0;
  /// Elements of what one rank gives or gets: of the smaller tensor where there are two.
  std::int64_t count = 0;
  DType dtype = DType::f32;

  /// "all_reduce 3"
  std::string name() const;
  std::size_t bytes() const { return static_cast<std::size_t>(count) * size_of(dtype); }
  /// Kind, operation, dtype and root in one word: with number and count, what ranks must agree on.
  std::uint64_t signature() const;
  /// "all_reduce 3 of 100 f32 sum", from words that another rank sent and that may be anything.
  static std::string told(std::uint64_t number, std::uint64_t signature, std::uint64_t count);
  /// What a communicator of one rank does.
  void run_alone() const;
};

/// Why a wait ended early; put behind the name of the call.
[[noreturn]] void fail_communication(const std::string& reason);

/// For two ranks that were asked for different things, in the words of told().
[[noreturn]] void fail_mismatch(int rank, const std::string& call, int other, const std::string& theirs);

class CollectiveEngine {
 public:
  virtual ~CollectiveEngine() = default;
  virtual std::string description() const = 0;
  /// Does the call; on the communicator's thread, in order. Throws ERR_COMMUNICATION as "rank 2 ...", the
  /// name of the call is put before it.
  virtual void run(const CollectiveCall& call) = 0;
  /// From any thread, once or more: run() throws soon, and the other ranks learn the reason where the engine
  /// has a way to tell them.
  virtual void interrupt(const std::string& reason) noexcept = 0;
};

class HostCommunicator final : public Communicator {
 public:
  HostCommunicator(std::shared_ptr<Backend> device, int rank, int size,
                   std::unique_ptr<CollectiveEngine> engine);
  /// Ends a call that is under way: its event fails.
  ~HostCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string description() const override { return engine_->description(); }
  Event all_reduce(const Tensor& x, const ReduceArgs& args) override;
  Event reduce_scatter(const Tensor& out, const Tensor& x, const ReduceArgs& args) override;
  Event all_gather(const Tensor& out, const Tensor& x) override;
  Event broadcast(const Tensor& x, int root) override;
  Event barrier() override;
  void abort(const std::string& reason) override;

 private:
  struct Entry {
    CollectiveCall call;
    std::shared_ptr<HostEvent> event;
  };
  void check(const char* call, const Tensor& x) const;
  void check_parts(const char* call, const Tensor& whole, const Tensor& part) const;
  Event post(CollectiveCall call);
  void serve();
  std::exception_ptr attempt(const CollectiveCall& call);

  const std::shared_ptr<Backend> device_;
  const int rank_, size_;
  const std::unique_ptr<CollectiveEngine> engine_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Entry> queue_;
  std::string failure_;  // the first one; empty: none
  std::uint64_t calls_ = 0;
  bool running_ = false, closing_ = false;
  std::thread thread_;
};

}  // namespace danceflux
