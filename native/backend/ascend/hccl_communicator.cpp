#include "backend/ascend/hccl_communicator.h"

#include <algorithm>
#include <mutex>
#include <sstream>
#include <utility>

#include "core/error.h"

namespace danceflux::ascend {
namespace {

/// Bytes of what an ordered sum gathers at once.
constexpr std::int64_t kGathered = 64 << 20;
constexpr std::chrono::microseconds kSoon{200};
constexpr std::chrono::milliseconds kLater{5};

HcclType hccl_type(DType dtype) {
  return dtype == DType::f32 ? kHcclFp32 : dtype == DType::bf16 ? kHcclBfp16 : kHcclFp16;
}
HcclOperation hccl_operation(CollectiveReduce op) {
  return op == CollectiveReduce::sum ? kHcclSum : kHcclMax;
}
std::uint64_t count_of(const Tensor& x) { return static_cast<std::uint64_t>(x.numel()); }

bool overlap(const Tensor& a, const Tensor& b) {
  const auto* const first = static_cast<const char*>(a.address());
  const auto* const second = static_cast<const char*>(b.address());
  return first < second + b.bytes() && second < first + a.bytes();
}

/// Memory that work under way may use for ever. It hangs on a static, so that leak checkers see it as wanted.
template <class Kept>
void keep_for_ever(Kept kept) {
  static std::mutex mutex;
  static auto* const all = new std::vector<Kept>;  // outlives the statics of the process, and what they end
  const std::lock_guard lock(mutex);
  all->push_back(std::move(kept));
}

std::string seconds_of(double seconds) {
  std::ostringstream text;
  text << seconds << " s";
  return text.str();
}

}  // namespace

HcclCommunicator::HcclCommunicator(std::shared_ptr<Backend> device, const CommunicatorOptions& options,
                                   HcclComm comm, std::string description)
    : device_(std::move(device)),
      backend_(static_cast<AscendBackend&>(*device_)),
      npu_(*backend_.npu()),
      hccl_(npu_.cann().hccl),
      rank_(options.rank),
      size_(options.size),
      timeout_seconds_(options.timeout_seconds),
      comm_(comm),
      description_(std::move(description)),
      stream_(npu_.make_stream()) {
  npu_.watch(watch_);
  thread_ = std::thread([this] { serve(); });
}

HcclCommunicator::~HcclCommunicator() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_one();
  thread_.join();
  if (npu_.abandoned()) {
    // What is under way may go on for ever: its memory must stay, and taking the communicator down would
    // wait.
    for (Flight& flight : flights_) keep_for_ever(std::move(flight));
    return;
  }
  try {
    npu_.bind();
    if (comm_) hccl_.HcclCommDestroy(comm_);
    npu_.acl().aclrtDestroyStream(stream_);
    npu_.acl().aclGetRecentErrMsg();
  } catch (...) {
  }
}

void HcclCommunicator::check(const char* call, const Tensor& x) const {
  require(x.defined() && &x.device() == device_.get(), "ERR_DEVICE", call,
          ": expected a tensor on the communicator's device");
  require(x.is_contiguous(), "ERR_SHAPE", call, ": expected a contiguous tensor, got ", x.shape(),
          " strides ", x.strides());
  require(x.dtype() == DType::f32 || x.dtype() == DType::bf16 || x.dtype() == DType::f16, "ERR_DTYPE", call,
          ": expected f32, bf16 or f16, got ", name_of(x.dtype()));
}

void HcclCommunicator::check_parts(const char* call, const Tensor& whole, const Tensor& part) const {
  check(call, whole);
  check(call, part);
  require(whole.dtype() == part.dtype(), "ERR_DTYPE", call, ": expected one dtype, got ",
          name_of(whole.dtype()), " and ", name_of(part.dtype()));
  require(whole.numel() == part.numel() * size_, "ERR_SHAPE", call, ": expected ", size_, " parts of ",
          part.numel(), " elements, got ", whole.numel(), " elements");
}

void HcclCommunicator::check_hccl(HcclStatus status, const char* function) const {
  if (status == kHcclSuccess) return;
  const std::string vendor = recent_words(npu_.acl());
  danceflux::fail("ERR_COMMUNICATION", function, ": expected success, got ", static_cast<int>(status), " (",
                  words_of_hccl(status), ")", vendor.empty() ? "" : ": ", vendor);
}

// ---- calls -----------------------------------------------------------------------------------------------

/// Puts `enqueue(flight)` on our stream, behind what the device's stream holds now.
template <class Enqueue>
Event HcclCommunicator::post(const char* call, std::vector<Tensor> tensors, Enqueue enqueue) {
  Flight flight;
  flight.number = ++calls_;
  flight.name = std::string(call) + " " + std::to_string(flight.number);
  flight.tensors = std::move(tensors);
  if (watch_->failed()) danceflux::fail("ERR_COMMUNICATION", flight.name, ": ", watch_->failure());
  npu_.wait(stream_, *npu_.record(npu_.stream()));
  flight.begins = npu_.record(stream_);
  try {
    const Launcher::OtherStream ours(backend_.launcher(), stream_, flight.workspaces);
    enqueue(flight);
    flight.ends = npu_.record(stream_);
  } catch (const Error& error) {
    // Some of it may be under way: the other ranks wait for the rest, which does not come.
    const std::string reason = flight.name + ": " + error.what();
    npu_.abandon();
    keep_for_ever(std::move(flight));
    fail(reason);
    throw Error("ERR_COMMUNICATION", reason, error.hint);
  }
  const std::shared_ptr<DeviceEvent> ends = flight.ends;
  ++watch_->under_way;
  {
    const std::lock_guard lock(mutex_);
    flights_.push_back(std::move(flight));
  }
  changed_.notify_one();
  return {ends};
}

Tensor HcclCommunicator::temporary(Flight& flight, const Shape& shape, DType dtype) {
  return flight.tensors.emplace_back(backend_.empty(shape, dtype));
}

void HcclCommunicator::copy(const char* call, const Tensor& out, const Tensor& x) {
  backend_.launcher()(call, npu_.cann().operators.aclnnInplaceCopy, out, x);
}

/// In place, in f32 or of maxima: where no dtype rounds.
void HcclCommunicator::reduce(Flight& flight, const char* call, const Tensor& x, const ReduceArgs& args) {
  const bool widen = args.op == CollectiveReduce::sum && x.dtype() != DType::f32;
  const Tensor sum = widen ? temporary(flight, x.shape(), DType::f32) : x;
  if (widen) copy(call, sum, x);
  check_hccl(hccl_.HcclAllReduce(sum.address(), sum.address(), count_of(sum), hccl_type(sum.dtype()),
                                 hccl_operation(args.op), comm_, stream_),
             "HcclAllReduce");
  if (widen) copy(call, x, sum);
}

/// out = the sum of all ranks' x in the tree of ReduceArgs, a piece at a time.
void HcclCommunicator::gather_and_add(Flight& flight, const char* call, const Tensor& out, const Tensor& x) {
  const std::int64_t count = x.numel(), most = std::min(count, kGathered / 4 / size_);
  const Tensor gathered = temporary(flight, {size_ * most}, x.dtype());
  const bool widen = x.dtype() != DType::f32;
  const Tensor wide = widen ? temporary(flight, {size_ * most}, DType::f32) : gathered;
  const Tensor flat_x = x.view({count}), flat_out = out ? out.view({count}) : Tensor();
  for (std::int64_t begin = 0; begin < count; begin += most) {
    const std::int64_t n = std::min(most, count - begin);
    check_hccl(hccl_.HcclAllGather(flat_x.narrow(0, begin, n).address(), gathered.address(),
                                   static_cast<std::uint64_t>(n), hccl_type(x.dtype()), comm_, stream_),
               "HcclAllGather");
    if (!out) continue;  // for another rank
    if (widen) copy(call, wide.narrow(0, 0, size_ * n), gathered.narrow(0, 0, size_ * n));
    std::vector<Tensor> parts;
    for (int rank = 0; rank < size_; ++rank) parts.push_back(wide.narrow(0, rank * n, n));
    while (parts.size() > 1) {
      std::vector<Tensor> sums;
      for (std::size_t i = 0; i + 1 < parts.size(); i += 2) {
        backend_.launcher()(call, npu_.cann().operators.aclnnAdd, parts[i], parts[i + 1], F32{1}, parts[i]);
        sums.push_back(parts[i]);
      }
      if (parts.size() % 2) sums.push_back(parts.back());
      parts = std::move(sums);
    }
    copy(call, flat_out.narrow(0, begin, n), parts[0]);
  }
}

Event HcclCommunicator::all_reduce(const Tensor& x, const ReduceArgs& args) {
  check("all_reduce", x);
  return post("all_reduce", {x}, [&](Flight& flight) {
    if (size_ == 1 || x.numel() == 0) return;
    if (gathers(args)) return gather_and_add(flight, "all_reduce", x, x);
    reduce(flight, "all_reduce", x, args);
  });
}

Event HcclCommunicator::reduce_scatter(const Tensor& out, const Tensor& x, const ReduceArgs& args) {
  check_parts("reduce_scatter", x, out);
  return post("reduce_scatter", {out, x}, [&](Flight& flight) {
    const std::int64_t n = out.numel();
    if (n == 0) return;
    const Tensor flat = x.view({n * size_});
    const auto part = [&](int rank) { return flat.narrow(0, rank * n, n); };
    if (size_ == 1) {
      if (out.address() != x.address()) copy("reduce_scatter", out.view({n}), flat);
    } else if (gathers(args)) {
      for (int rank = 0; rank < size_; ++rank)
        gather_and_add(flight, "reduce_scatter", rank == rank_ ? out : Tensor(), part(rank));
    } else {
      const bool widen = args.op == CollectiveReduce::sum && x.dtype() != DType::f32;
      const DType dtype = widen ? DType::f32 : x.dtype();
      const Tensor send = widen ? temporary(flight, {n * size_}, dtype) : flat;
      if (widen) copy("reduce_scatter", send, flat);
      // Not into what is sent.
      const Tensor receive = widen || overlap(out, x) ? temporary(flight, {n}, dtype) : out.view({n});
      check_hccl(hccl_.HcclReduceScatter(send.address(), receive.address(), static_cast<std::uint64_t>(n),
                                         hccl_type(dtype), hccl_operation(args.op), comm_, stream_),
                 "HcclReduceScatter");
      if (receive.address() != out.address()) copy("reduce_scatter", out.view({n}), receive);
    }
  });
}

Event HcclCommunicator::all_gather(const Tensor& out, const Tensor& x) {
  check_parts("all_gather", out, x);
  return post("all_gather", {out, x}, [&](Flight& flight) {
    if (x.numel() == 0) return;
    Tensor send = x;
    if (size_ == 1) {
      if (out.address() != x.address()) copy("all_gather", out.view({x.numel()}), x.view({x.numel()}));
      return;
    }
    if (overlap(out, x)) {
      send = temporary(flight, x.shape(), x.dtype());
      copy("all_gather", send, x);
    }
    check_hccl(
        hccl_.HcclAllGather(send.address(), out.address(), count_of(x), hccl_type(x.dtype()), comm_, stream_),
        "HcclAllGather");
  });
}

Event HcclCommunicator::broadcast(const Tensor& x, int root) {
  check("broadcast", x);
  require(root >= 0 && root < size_, "ERR_ARGUMENT", "broadcast: expected a root from 0 to ", size_ - 1,
          ", got ", root);
  return post("broadcast", {x}, [&](Flight&) {
    if (size_ == 1 || x.numel() == 0) return;
    check_hccl(hccl_.HcclBroadcast(x.address(), count_of(x), hccl_type(x.dtype()),
                                   static_cast<std::uint32_t>(root), comm_, stream_),
               "HcclBroadcast");
  });
}

Event HcclCommunicator::barrier() {
  return post("barrier", {}, [&](Flight&) {
    if (size_ > 1) check_hccl(hccl_.HcclBarrier(comm_, stream_), "HcclBarrier");
  });
}

void HcclCommunicator::abort(const std::string& reason) { fail("aborted: " + reason); }

// ---- watching --------------------------------------------------------------------------------------------

void HcclCommunicator::fail(const std::string& reason) {
  if (watch_->under_way > 0) npu_.abandon();
  watch_->fail(reason);
  changed_.notify_one();
}

/// Looks at the oldest call. Throws when it took too long or failed.
void HcclCommunicator::look(Flight& flight) {
  if (!flight.begun && flight.begins->complete()) {
    flight.begun = true;
    flight.began = Clock::now();
    progress.reach(flight.number);
  }
  if (comm_ && hccl_.HcclGetCommAsyncError) {
    HcclStatus error = kHcclSuccess;
    // Some chips do not know the question; only an answer counts.
    if (hccl_.HcclGetCommAsyncError(comm_, &error) == kHcclSuccess && error != kHcclSuccess)
      danceflux::fail("ERR_COMMUNICATION", "the link failed: ", words_of_hccl(error));
  }
  if (flight.begun && Clock::now() - flight.began > std::chrono::duration<double>(timeout_seconds_))
    danceflux::fail("ERR_COMMUNICATION", "rank ", rank_, " waited ", seconds_of(timeout_seconds_),
                    " for the other ranks: ", progress.missing(flight.number, rank_));
}

void HcclCommunicator::serve() {
  std::unique_lock lock(mutex_);
  auto pause = std::chrono::microseconds(kSoon);
  for (;;) {
    changed_.wait(lock, [&] { return closing_ || !flights_.empty(); });
    if (flights_.empty() || watch_->failed()) {
      if (closing_) return;
      changed_.wait(lock, [&] { return closing_; });
      return;
    }
    Flight& flight = flights_.front();  // the device's thread only adds behind it
    lock.unlock();
    bool done = false;
    try {
      done = flight.ends->complete();
      if (!done) look(flight);
    } catch (const std::exception& error) {
      fail(flight.name + ": " + error.what());
    }
    lock.lock();
    if (done) {
      retire(lock);
      pause = kSoon;
    } else {
      // By the system's clock: an old glibc knows no other, and a wait that is too long or short is harmless.
      changed_.wait_until(lock, std::chrono::system_clock::now() + pause);
      pause = std::min<std::chrono::microseconds>(pause * 2, kLater);
    }
  }
}

/// The oldest call is done: its memory goes back, outside of the lock.
void HcclCommunicator::retire(std::unique_lock<std::mutex>& lock) {
  Flight flight = std::move(flights_.front());
  flights_.pop_front();
  --watch_->under_way;
  progress.reach(flight.number);
  lock.unlock();
  for (const auto& [address, bytes] : flight.workspaces) backend_.release(address, bytes);
  flight = {};
  lock.lock();
}

}  // namespace danceflux::ascend
