#include "thread_ranks.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <thread>

#include "core/error.h"
#include "goldens.h"
#include "harness.h"

namespace danceflux::test {
namespace {

constexpr auto kDeadline = std::chrono::seconds(60);  // longer than any test: nothing here hangs for ever

using Bytes = std::vector<std::byte>;

Bytes bytes_of(const Tensor& x) {
  const auto* from = static_cast<const std::byte*>(x.address());
  return {from, from + x.bytes()};
}

std::vector<float> floats_of(const Bytes& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

/// ((0 + 1) + (2 + 3)) + ...
std::vector<float> pairwise(std::vector<std::vector<float>> terms) {
  while (terms.size() > 1) {
    std::vector<std::vector<float>> sums;
    for (std::size_t i = 0; i < terms.size(); i += 2) {
      sums.push_back(terms[i]);
      if (i + 1 == terms.size()) continue;
      for (std::size_t k = 0; k < sums.back().size(); ++k) sums.back()[k] += terms[i + 1][k];
    }
    terms = std::move(sums);
  }
  return terms[0];
}

std::vector<float> backwards(const std::vector<std::vector<float>>& terms) {
  std::vector<float> sum = terms.back();
  for (std::size_t i = terms.size() - 1; i-- > 0;) {
    for (std::size_t k = 0; k < sum.size(); ++k) sum[k] += terms[i][k];
  }
  return sum;
}

Bytes joined(const std::string& operation, const std::vector<Bytes>& inputs) {
  Bytes all;
  if (operation.starts_with("gather")) {
    for (const Bytes& input : inputs) all.insert(all.end(), input.begin(), input.end());
    return all;
  }
  if (operation.starts_with("broadcast")) return inputs.at(std::stoul(operation.substr(10)));
  std::vector<std::vector<float>> terms;
  for (const Bytes& input : inputs) terms.push_back(floats_of(input));
  const std::vector<float> sum = operation.ends_with("ordered") ? pairwise(terms) : backwards(terms);
  all.resize(sum.size() * sizeof(float));
  if (!all.empty()) std::memcpy(all.data(), sum.data(), all.size());
  return all;
}

}  // namespace

/// One collective of all ranks.
struct ThreadWorld::Round {
  std::string operation;
  std::vector<Bytes> inputs;
  int arrived = 0;
  Bytes result;  // once all have arrived
};

/// What an event is here: one rank's part in a round.
struct ThreadWorld::Arrival {
  std::shared_ptr<ThreadWorld> world;
  std::shared_ptr<Round> round;
  int rank;
  Tensor out, in;
  bool written = false;

  void wait() {
    std::unique_lock lock(world->mutex_);
    const bool there = world->changed_.wait_for(
        lock, kDeadline, [&] { return !world->failure_.empty() || round->arrived == world->size_; });
    require(world->failure_.empty(), "ERR_COMMUNICATION", world->failure_);
    require(there, "ERR_COMMUNICATION", round->operation, ": only ", round->arrived, " ranks came");
    if (written) return;
    written = true;
    write();
  }

  void write() const {
    const Bytes& result = round->result;
    if (!round->operation.starts_with("scatter")) {
      std::memcpy(out.address(), result.data(), result.size());
      return;
    }
    auto* whole = in.data<float>();
    std::fill_n(whole, in.numel(), std::numeric_limits<float>::quiet_NaN());
    std::memcpy(out.address(), result.data() + static_cast<std::size_t>(rank) * out.bytes(), out.bytes());
  }
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadWorld> world, int rank) : world_(std::move(world)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return world_->size(); }
  std::string description() const override { return "threads"; }

  Event all_reduce(const Tensor& x, const ReduceArgs& args) override {
    return call(args.ordered ? "reduce ordered" : "reduce", x, x);
  }
  Event reduce_scatter(const Tensor& out, const Tensor& x, const ReduceArgs& args) override {
    CHECK_EQ(out.numel() * size(), x.numel());
    return call(args.ordered ? "scatter ordered" : "scatter", out, x);
  }
  Event all_gather(const Tensor& out, const Tensor& x) override {
    CHECK_EQ(x.numel() * size(), out.numel());
    return call("gather", out, x);
  }
  Event broadcast(const Tensor& x, int root) override {
    return call("broadcast " + std::to_string(root), x, x);
  }
  Event barrier() override { return call("gather", {}, {}); }
  void abort(const std::string& reason) override { world_->abort(reason); }

 private:
  Event call(const std::string& operation, const Tensor& out, const Tensor& in) {
    for (const Tensor* tensor : {&out, &in}) CHECK(!*tensor || tensor->is_contiguous());
    return world_->arrive(rank_, operation, out, in);
  }
  std::shared_ptr<ThreadWorld> world_;
  int rank_;
};

std::shared_ptr<Communicator> ThreadWorld::communicator(int rank) {
  return std::make_shared<ThreadCommunicator>(shared_from_this(), rank);
}

std::shared_ptr<WrappedBackend> ThreadWorld::device() const {
  auto device = std::make_shared<WrappedBackend>(cpu_device(1), true);
  device->on_wait = [](const Event& event) { static_cast<Arrival*>(event.handle.get())->wait(); };
  return device;
}

void ThreadWorld::abort(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (failure_.empty()) failure_ = reason;
  changed_.notify_all();
}

std::size_t ThreadWorld::calls(int rank) {
  const std::lock_guard lock(mutex_);
  return next_[static_cast<std::size_t>(rank)];
}

Event ThreadWorld::arrive(int rank, const std::string& operation, const Tensor& out, const Tensor& in) {
  const std::lock_guard lock(mutex_);
  require(failure_.empty(), "ERR_COMMUNICATION", failure_);
  const std::size_t number = next_[static_cast<std::size_t>(rank)]++;
  if (number == rounds_.size()) {
    rounds_.push_back(std::make_shared<Round>());
    rounds_.back()->operation = operation;
    rounds_.back()->inputs.resize(static_cast<std::size_t>(size_));
  }
  const std::shared_ptr<Round> round = rounds_[number];
  require(round->operation == operation, "ERR_COMMUNICATION", "rank ", rank, ": expected ", round->operation,
          ", got ", operation);
  Bytes input = in ? bytes_of(in) : Bytes();
  for (int other = 0; other < size_ && round->arrived > 0; ++other) {
    const Bytes& there = round->inputs[static_cast<std::size_t>(other)];
    require(there.empty() || there.size() == input.size(), "ERR_COMMUNICATION", operation, ": rank ", rank,
            " has ", input.size(), " bytes, rank ", other, " has ", there.size());
  }
  round->inputs[static_cast<std::size_t>(rank)] = std::move(input);
  if (++round->arrived == size_) {
    round->result = joined(operation, round->inputs);
    round->inputs.clear();
    changed_.notify_all();
  }
  return {std::make_shared<Arrival>(Arrival{shared_from_this(), round, rank, out, in})};
}

void on_ranks(int size, const std::function<void(ThreadWorld&, int, const std::shared_ptr<Communicator>&,
                                                 const std::shared_ptr<Backend>&)>& body) {
  const auto world = std::make_shared<ThreadWorld>(size);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(*world, rank, world->communicator(rank), world->device());
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
        world->abort(std::string("another rank failed: ") + error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace danceflux::test
