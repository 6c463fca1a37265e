// One NCCL communicator per rank, non-blocking: no call of NCCL's is waited in for longer than the deadline.
// Calls go to a stream of the communicator's own; a thread watches the oldest of them and, when NCCL reports
// an error or another rank does not come, aborts, which ends the kernels that wait. Whoever waits for the
// device then learns why.
#include "backend/cuda/collective.h"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <sstream>
#include <thread>

#include "backend/cuda/events.h"
#include "backend/cuda/nccl_functions.h"
#include "backend/options.h"

namespace danceflux::cuda {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kLook{2};

ncclDataType_t type_of(DType dtype) {
  return dtype == DType::bf16 ? ncclBfloat16 : dtype == DType::f16 ? ncclFloat16 : ncclFloat32;
}

/// Why the communicator is of no more use; shared with events, which may outlive it.
class Failure {
 public:
  /// The first reason stays.
  void set(const std::string& reason) {
    const std::lock_guard lock(mutex_);
    if (reason_.empty()) reason_ = reason;
  }
  std::string reason() const {
    const std::lock_guard lock(mutex_);
    return reason_;
  }
  void throw_if_set() const {
    if (const std::string why = reason(); !why.empty()) throw Error("ERR_COMMUNICATION", why);
  }

 private:
  mutable std::mutex mutex_;
  std::string reason_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<CudaBackend> device, const CommunicatorOptions& options, ncclComm_t comm)
      : device_(std::move(device)),
        nccl_(NcclFunctions::get()),
        rank_(options.rank),
        size_(options.size),
        timeout_(options.timeout_seconds),
        comm_(comm),
        failure_(std::make_shared<Failure>()),
        alive_(std::make_shared<const std::function<void()>>(
            [failure = failure_] { failure->throw_if_set(); })) {
    device_->enter("communicator");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "communicator");
    watcher_ = std::thread([this] { watch(); });
  }

  ~NcclCommunicator() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
      while (!pending_.empty() && cudaEventQuery(pending_.front().after->get()) != cudaErrorNotReady)
        pending_.pop_front();
      // What is still under way ends: others may never come.
      if (!pending_.empty()) fail(pending_.front().name + ": the communicator was closed");
    }
    changed_.notify_all();
    watcher_.join();
    cudaSetDevice(device_->index());
    if (comm_) nccl_.ncclCommDestroy(comm_);
    if (stream_) {
      cudaStreamSynchronize(stream_);
      cudaStreamDestroy(stream_);
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string description() const override {
    int version = 0;
    nccl_.ncclGetVersion(&version);
    return "NCCL " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
           std::to_string(version % 100) + ", " + std::to_string(size_) + " ranks";
  }

  Event all_reduce(const Tensor& x, const ReduceArgs& args) override;
  Event reduce_scatter(const Tensor& out, const Tensor& x, const ReduceArgs& args) override;
  Event all_gather(const Tensor& out, const Tensor& x) override;
  Event broadcast(const Tensor& x, int root) override;
  Event barrier() override;
  void abort(const std::string& reason) override {
    failure_->set("aborted: " + reason);  // seen by whoever holds the lock while another rank is late
    const std::lock_guard lock(mutex_);
    end();
  }

 private:
  struct Pending {
    std::string name;
    std::uint64_t number;
    std::shared_ptr<StreamEvent> before, after;
    std::vector<Tensor> kept;
    bool started = false;
    Clock::time_point since{};
  };

  void check_tensor(const char* call, const Tensor& x) const {
    require(x.defined() && &x.device() == device_.get(), "ERR_DEVICE", call, ": expected a tensor on ",
            device_->name());
    require(x.is_contiguous(), "ERR_SHAPE", call, ": expected a contiguous tensor, got strides ",
            x.strides());
    require(x.dtype() == DType::f32 || x.dtype() == DType::bf16 || x.dtype() == DType::f16, "ERR_DTYPE", call,
            ": expected f32, bf16 or f16, got ", name_of(x.dtype()));
  }

  /// body puts the call on stream_, behind all that the device's stream holds.
  template <class Body>
  Event post(const std::string& call, std::vector<Tensor> kept, const Body& body) {
    std::unique_lock lock(mutex_);
    failure_->throw_if_set();
    const std::string name = call + " " + std::to_string(++calls_);
    Pending entry{name, calls_, std::make_shared<StreamEvent>(), std::make_shared<StreamEvent>(),
                  std::move(kept)};
    entry.after->alive = alive_;
    device_->enter("collective");
    check(cudaEventRecord(entry.before->get(), device_->stream()), name);
    check(cudaStreamWaitEvent(stream_, entry.before->get(), 0), name);
    body(name);
    check(cudaPeekAtLastError(), name);
    check(cudaEventRecord(entry.after->get(), stream_), name);
    const Event event{entry.after};
    pending_.push_back(std::move(entry));
    lock.unlock();
    changed_.notify_all();
    return event;
  }

  /// Holds NCCL's answer of one call: where it goes on in the background, until it has been taken.
  void settle(ncclResult_t result, const std::string& name) {
    const auto end = Clock::now() + timeout_;
    while (result == ncclInProgress) {
      if (const std::string why = failure_->reason(); !why.empty()) give_up(why);
      if (Clock::now() > end)
        return give_up(name + ": rank " + std::to_string(rank_) + " waited " + seconds() +
                       " for the other ranks: " + progress.missing(calls_, rank_));
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      if (nccl_.ncclCommGetAsyncError(comm_, &result) != ncclSuccess) result = ncclInternalError;
    }
    if (result != ncclSuccess) give_up(name + ": " + words(result));
  }
  [[noreturn]] void give_up(const std::string& reason) {
    fail(reason);
    throw Error("ERR_COMMUNICATION", reason);
  }
  std::string words(ncclResult_t result) const {
    const char* detail = comm_ ? nccl_.ncclGetLastError(comm_) : nullptr;
    return std::string("rank ") + std::to_string(rank_) +
           " learnt of a failure: " + nccl_.ncclGetErrorString(result) +
           (detail && *detail ? std::string(": ") + detail : "");
  }
  std::string seconds() const {
    std::ostringstream text;
    text << timeout_.count() << " s";
    return text.str();
  }

  /// With mutex_ held. The first reason stays; kernels that wait for others end.
  void fail(const std::string& reason) {
    failure_->set(reason);
    end();
  }
  void end() {
    cudaSetDevice(device_->index());
    if (comm_) nccl_.ncclCommAbort(comm_);
    comm_ = nullptr;
  }

  void watch();
  bool look();

  Tensor widened(const Tensor& x, std::int64_t count) const;
  void exchange(const Tensor& gathered, const Tensor& whole, std::int64_t part, const std::string& name);

  const std::shared_ptr<CudaBackend> device_;
  const NcclFunctions& nccl_;
  const int rank_, size_;
  const std::chrono::duration<double> timeout_;
  ncclComm_t comm_;
  const std::shared_ptr<Failure> failure_;
  const std::shared_ptr<const std::function<void()>> alive_;
  cudaStream_t stream_ = nullptr;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Pending> pending_;
  std::uint64_t calls_ = 0;
  bool closing_ = false;
  std::thread watcher_;
};

void NcclCommunicator::watch() {
  cudaSetDevice(device_->index());
  std::unique_lock lock(mutex_);
  while (!closing_) {
    if (pending_.empty()) {
      changed_.wait(lock, [this] { return closing_ || !pending_.empty(); });
    } else if (!look()) {
      changed_.wait_for(lock, kLook, [this] { return closing_; });
    }
  }
  pending_.clear();
}

/// Once at the oldest call. True: it is done with.
bool NcclCommunicator::look() {
  Pending& oldest = pending_.front();
  const cudaError_t state = cudaEventQuery(oldest.after->get());
  if (state != cudaErrorNotReady || !comm_) {
    if (state != cudaSuccess && state != cudaErrorNotReady) fail(words_for(state, oldest.name));
    progress.reach(oldest.number);
    // Its tensors may go back from here; with the lock held nobody waits for them.
    pending_.pop_front();
    return true;
  }
  ncclResult_t result = ncclSuccess;
  if (nccl_.ncclCommGetAsyncError(comm_, &result) != ncclSuccess) result = ncclInternalError;
  if (result != ncclSuccess && result != ncclInProgress) {
    fail(oldest.name + ": " + words(result));
    return false;
  }
  // The clock runs from when this rank's own work is done: a long backward pass is nobody's failure.
  if (!oldest.started && cudaEventQuery(oldest.before->get()) == cudaSuccess) {
    oldest.started = true;
    oldest.since = Clock::now();
    progress.reach(oldest.number);
  }
  if (oldest.started && Clock::now() - oldest.since > timeout_)
    fail(oldest.name + ": rank " + std::to_string(rank_) + " waited " + seconds() +
         " for the other ranks: " + progress.missing(oldest.number, rank_));
  return false;
}

// ---- the calls --------------------------------------------------------------------------------------------

/// `x` in f32, followed by zeros up to `count` elements, on the device's own stream.
Tensor NcclCommunicator::widened(const Tensor& x, std::int64_t count) const {
  const Tensor wide = device_->empty({count});
  device_->copy(wide.narrow(0, 0, x.numel()), x.view({x.numel()}));
  if (count > x.numel()) device_->fill(wide.narrow(0, x.numel(), count - x.numel()), 0);
  return wide;
}

/// Part r of every rank's `whole` to rank r: gathered [size, part] in rank order.
void NcclCommunicator::exchange(const Tensor& gathered, const Tensor& whole, std::int64_t part,
                                const std::string& name) {
  settle(nccl_.ncclGroupStart(), name);
  for (int other = 0; other < size_; ++other) {
    const auto count = static_cast<std::size_t>(part);
    const std::int64_t at = other * part;
    settle(nccl_.ncclSend(whole.data<float>() + at, count, ncclFloat32, other, comm_, stream_), name);
    settle(nccl_.ncclRecv(gathered.data<float>() + at, count, ncclFloat32, other, comm_, stream_), name);
  }
  settle(nccl_.ncclGroupEnd(), name);
}

Event NcclCommunicator::all_reduce(const Tensor& x, const ReduceArgs& args) {
  check_tensor("all_reduce", x);
  const auto count = static_cast<std::size_t>(x.numel());
  if (count == 0) return post("all_reduce", {}, [](const std::string&) {});
  const bool sum = args.op == CollectiveReduce::sum;
  if (!sum || (!args.ordered && x.dtype() == DType::f32)) {
    return post("all_reduce", {x}, [&](const std::string& name) {
      settle(nccl_.ncclAllReduce(x.address(), x.address(), count, type_of(x.dtype()), sum ? ncclSum : ncclMax,
                                 comm_, stream_),
             name);
    });
  }
  if (!args.ordered) {  // sums are made in f32, and NCCL would make them in the tensor's dtype
    const Tensor wide = widened(x, x.numel());
    return post("all_reduce", {x, wide}, [&](const std::string& name) {
      settle(nccl_.ncclAllReduce(wide.address(), wide.address(), count, ncclFloat32, ncclSum, comm_, stream_),
             name);
      round_to(stream_, x.address(), x.dtype(), wide.data<float>(), x.numel());
    });
  }
  const std::int64_t part = (x.numel() + size_ - 1) / size_;
  const Tensor wide = widened(x, part * size_), gathered = device_->empty({size_, part});
  return post("all_reduce", {x, wide, gathered}, [&](const std::string& name) {
    exchange(gathered, wide, part, name);
    float* mine = wide.data<float>() + rank_ * part;
    sum_parts(stream_, mine, gathered.data<float>(), part, size_);
    settle(nccl_.ncclAllGather(mine, wide.address(), static_cast<std::size_t>(part), ncclFloat32, comm_,
                               stream_),
           name);
    round_to(stream_, x.address(), x.dtype(), wide.data<float>(), x.numel());
  });
}

Event NcclCommunicator::reduce_scatter(const Tensor& out, const Tensor& x, const ReduceArgs& args) {
  check_tensor("reduce_scatter", x);
  check_tensor("reduce_scatter", out);
  require(x.dtype() == out.dtype() && x.numel() == out.numel() * size_, "ERR_SHAPE",
          "reduce_scatter: expected ", size_, " times ", out.numel(), " elements of one dtype, got ",
          x.numel());
  const auto count = static_cast<std::size_t>(out.numel());
  if (count == 0) return post("reduce_scatter", {}, [](const std::string&) {});
  const bool sum = args.op == CollectiveReduce::sum;
  if (!sum || (!args.ordered && x.dtype() == DType::f32)) {
    return post("reduce_scatter", {x, out}, [&](const std::string& name) {
      settle(nccl_.ncclReduceScatter(x.address(), out.address(), count, type_of(x.dtype()),
                                     sum ? ncclSum : ncclMax, comm_, stream_),
             name);
    });
  }
  const Tensor wide = widened(x, x.numel()),
               gathered = device_->empty({args.ordered ? size_ : 1, out.numel()});
  return post("reduce_scatter", {x, out, wide, gathered}, [&](const std::string& name) {
    float* mine = wide.data<float>();
    if (args.ordered) {
      exchange(gathered, wide, out.numel(), name);
      sum_parts(stream_, mine, gathered.data<float>(), out.numel(), size_);
    } else {
      mine = gathered.data<float>();
      settle(nccl_.ncclReduceScatter(wide.address(), mine, count, ncclFloat32, ncclSum, comm_, stream_),
             name);
    }
    round_to(stream_, out.address(), out.dtype(), mine, out.numel());
  });
}

Event NcclCommunicator::all_gather(const Tensor& out, const Tensor& x) {
  check_tensor("all_gather", x);
  check_tensor("all_gather", out);
  require(x.dtype() == out.dtype() && out.numel() == x.numel() * size_, "ERR_SHAPE", "all_gather: expected ",
          size_, " times ", x.numel(), " elements of one dtype, got ", out.numel());
  return post("all_gather", {out, x}, [&](const std::string& name) {
    if (x.numel() == 0) return;
    settle(nccl_.ncclAllGather(x.address(), out.address(), static_cast<std::size_t>(x.numel()),
                               type_of(x.dtype()), comm_, stream_),
           name);
  });
}

Event NcclCommunicator::broadcast(const Tensor& x, int root) {
  check_tensor("broadcast", x);
  require(root >= 0 && root < size_, "ERR_SHAPE", "broadcast: expected a root below ", size_, ", got ", root);
  return post("broadcast", {x}, [&](const std::string& name) {
    if (x.numel() == 0) return;
    settle(nccl_.ncclBroadcast(x.address(), x.address(), static_cast<std::size_t>(x.numel()),
                               type_of(x.dtype()), root, comm_, stream_),
           name);
  });
}

Event NcclCommunicator::barrier() {
  const Tensor word = device_->empty({1});
  device_->fill(word, 0);
  return post("barrier", {word}, [&](const std::string& name) {
    settle(nccl_.ncclAllReduce(word.address(), word.address(), 1, ncclFloat32, ncclSum, comm_, stream_),
           name);
  });
}

// ---- connecting -------------------------------------------------------------------------------------------

/// What a rank tells the others: NCCL's version, for all must have one, and from rank 0 the id.
struct Offer {
  std::int32_t version = 0;
  ncclUniqueId id{};
};

class NcclSetup final : public CommunicatorSetup {
 public:
  NcclSetup(std::shared_ptr<CudaBackend> device, const CommunicatorOptions& options, int min_ctas,
            int max_ctas)
      : device_(std::move(device)), options_(options), min_ctas_(min_ctas), max_ctas_(max_ctas) {}

  std::string offer() override {
    const NcclFunctions& nccl = NcclFunctions::get();
    Offer mine;
    nccl.ncclGetVersion(&mine.version);
    if (options_.rank == 0) {
      device_->enter("communicator");
      const ncclResult_t result = nccl.ncclGetUniqueId(&mine.id);
      require(result == ncclSuccess, "ERR_COMMUNICATION", "nccl: expected an id, got ",
              nccl.ncclGetErrorString(result), ": ", nccl.ncclGetLastError(nullptr));
    }
    return {reinterpret_cast<const char*>(&mine), sizeof mine};
  }

  std::unique_ptr<Communicator> connect(std::span<const std::string> offers) override {
    const NcclFunctions& nccl = NcclFunctions::get();
    require(offers.size() == static_cast<std::size_t>(options_.size), "ERR_COMMUNICATION", "nccl: expected ",
            options_.size, " offers, got ", offers.size());
    const Offer first = read(offers, 0), mine = read(offers, static_cast<std::size_t>(options_.rank));
    for (std::size_t rank = 0; rank < offers.size(); ++rank) {
      const std::int32_t version = read(offers, rank).version;
      require(version == mine.version, "ERR_COMMUNICATION", "nccl: expected one version on all ranks, got ",
              mine.version, " on rank ", options_.rank, " and ", version, " on rank ", rank);
    }
    device_->enter("communicator");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    // The layout of 2.18, which every NCCL since then reads.
    config.size = 48;
    config.version = 21805;
    config.blocking = 0;
    if (min_ctas_) config.minCTAs = min_ctas_;
    if (max_ctas_) config.maxCTAs = max_ctas_;
    ncclComm_t comm = nullptr;
    ncclResult_t result = nccl.ncclCommInitRankConfig(&comm, options_.size, first.id, options_.rank, &config);
    const auto end = Clock::now() + std::chrono::duration<double>(options_.timeout_seconds);
    while (result == ncclInProgress && Clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (nccl.ncclCommGetAsyncError(comm, &result) != ncclSuccess) result = ncclInternalError;
    }
    if (result == ncclSuccess) return std::make_unique<NcclCommunicator>(device_, options_, comm);
    const std::string detail = comm ? nccl.ncclGetLastError(comm) : "";
    if (comm) nccl.ncclCommAbort(comm);
    if (result == ncclInProgress)
      fail("ERR_COMMUNICATION", "nccl: rank ", options_.rank, " of ", options_.size, " waited ",
           options_.timeout_seconds, " s for the other ranks to connect");
    fail("ERR_COMMUNICATION", "nccl: rank ", options_.rank,
         " could not connect: ", nccl.ncclGetErrorString(result), detail.empty() ? "" : ": ", detail);
  }

 private:
  /// Offers come from the network.
  static Offer read(std::span<const std::string> offers, std::size_t rank) {
    Offer offer;
    require(offers[rank].size() == sizeof offer, "ERR_COMMUNICATION", "nccl: expected an offer of ",
            sizeof offer, " bytes from rank ", rank, ", got ", offers[rank].size());
    std::memcpy(&offer, offers[rank].data(), sizeof offer);
    return offer;
  }

  const std::shared_ptr<CudaBackend> device_;
  const CommunicatorOptions options_;
  const int min_ctas_, max_ctas_;
};

}  // namespace

std::unique_ptr<CommunicatorSetup> make_nccl_setup(const std::shared_ptr<Backend>& device,
                                                   const CommunicatorOptions& options) {
  const auto cuda_device = std::dynamic_pointer_cast<CudaBackend>(device);
  require(cuda_device != nullptr, "ERR_DEVICE", "nccl: expected a CUDA device, got ", device->name());
  const DeviceOptions given = DeviceOptions::parse(options.engine_options);
  given.allow_only("nccl", {"minCtas", "maxCtas"});
  const auto ctas = [&](const char* name) {
    const std::int64_t value = given.integer(name, 0);
    require(value >= 0 && value <= 64, "ERR_OPTION", "option ", name, ": expected 1 to 64, got ", value);
    return static_cast<int>(value);
  };
  const int least = ctas("minCtas"), most = ctas("maxCtas");
  require(!least || !most || least <= most, "ERR_OPTION", "option minCtas: expected at most maxCtas, ", most,
          ", got ", least);
  NcclFunctions::get();
  return std::make_unique<NcclSetup>(cuda_device, options, least, most);
}

}  // namespace danceflux::cuda
