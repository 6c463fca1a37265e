// A communicator of HCCL once its ranks are connected.
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <thread>
#include <vector>

#include "backend/ascend/ascend_backend.h"
#include "backend/ascend/hccl.h"
#include "backend/communicator.h"

namespace danceflux::ascend {

class HcclCommunicator final : public Communicator {
 public:
  /// Takes `comm` over; null where there is one rank.
  HcclCommunicator(std::shared_ptr<Backend> device, const CommunicatorOptions& options, HcclComm comm,
                   std::string description);
  ~HcclCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string description() const override { return description_; }
  Event all_reduce(const Tensor& x, const ReduceArgs& args) override;
  Event reduce_scatter(const Tensor& out, const Tensor& x, const ReduceArgs& args) override;
  Event all_gather(const Tensor& out, const Tensor& x) override;
  Event broadcast(const Tensor& x, int root) override;
  Event barrier() override;
  void abort(const std::string& reason) override;

 private:
  using Clock = std::chrono::steady_clock;
  /// A call under way, and the memory that it works in.
  struct Flight {
    std::string name;
    std::uint64_t number = 0;
    std::shared_ptr<DeviceEvent> begins, ends;  // nothing of the device's own work is before it; it is done
    std::vector<Tensor> tensors;
    std::vector<std::pair<void*, std::size_t>> workspaces;
    bool begun = false;
    Clock::time_point began;
  };

  void check(const char* call, const Tensor& x) const;
  void check_parts(const char* call, const Tensor& whole, const Tensor& part) const;
  template <class Enqueue>
  Event post(const char* call, std::vector<Tensor> tensors, Enqueue enqueue);
  void check_hccl(HcclStatus status, const char* function) const;
  Tensor temporary(Flight& flight, const Shape& shape, DType dtype);
  void copy(const char* call, const Tensor& out, const Tensor& x);
  void reduce(Flight& flight, const char* call, const Tensor& x, const ReduceArgs& args);
  void gather_and_add(Flight& flight, const char* call, const Tensor& out, const Tensor& x);
  bool gathers(const ReduceArgs& args) const {
    return args.ordered && args.op == CollectiveReduce::sum && size_ > 2;
  }

  void serve();
  void look(Flight& flight);
  void retire(std::unique_lock<std::mutex>& lock);
  void fail(const std::string& reason);

  const std::shared_ptr<Backend> device_;
  AscendBackend& backend_;
  Npu& npu_;
  const Hccl& hccl_;
  const int rank_, size_;
  const double timeout_seconds_;
  const HcclComm comm_;
  const std::string description_;
  const std::shared_ptr<CollectiveWatch> watch_ = std::make_shared<CollectiveWatch>();
  AclStream stream_ = nullptr;
  std::uint64_t calls_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Flight> flights_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace danceflux::ascend
