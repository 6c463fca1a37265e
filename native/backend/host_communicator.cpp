#include "backend/host_communicator.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "core/error.h"

namespace danceflux {
namespace {

constexpr const char* kNames[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier"};

}  // namespace

std::string CollectiveCall::name() const {
  return std::string(kNames[static_cast<int>(kind)]) + " " + std::to_string(number);
}

std::uint64_t CollectiveCall::signature() const {
  return static_cast<std::uint64_t>(kind) | static_cast<std::uint64_t>(reduce.op) << 8 |
         static_cast<std::uint64_t>(dtype) << 16 | static_cast<std::uint64_t>(root) << 32;
}

std::string CollectiveCall::told(std::uint64_t number, std::uint64_t signature, std::uint64_t count) {
  CollectiveCall call;
  call.kind = static_cast<CollectiveKind>(std::min<std::uint64_t>(signature & 0xff, 4));
  call.number = number;
  std::ostringstream text;
  text << call.name();
  if (call.kind == CollectiveKind::barrier) return text.str();
  const auto dtype = static_cast<DType>(std::min<std::uint64_t>(signature >> 16 & 0xff, 6));
  text << " of " << count << ' ' << name_of(dtype);
  if (call.kind == CollectiveKind::broadcast) text << " from rank " << (signature >> 32);
  if (call.kind < CollectiveKind::all_gather) text << ((signature >> 8 & 0xff) == 0 ? " sum" : " max");
  return text.str();
}

void CollectiveCall::run_alone() const {
  if (x && out.address() != x.address() && count > 0) std::memcpy(out.address(), x.address(), bytes());
}

void fail_mismatch(int rank, const std::string& call, int other, const std::string& theirs) {
  fail_communication("expected one call of all ranks, got " + call + " from rank " + std::to_string(rank) +
                     " and " + theirs + " from rank " + std::to_string(other));
}

void fail_communication(const std::string& reason) { throw Error("ERR_COMMUNICATION", reason); }

HostCommunicator::HostCommunicator(std::shared_ptr<Backend> device, int rank, int size,
                                   std::unique_ptr<CollectiveEngine> engine)
    : device_(std::move(device)), rank_(rank), size_(size), engine_(std::move(engine)) {
  thread_ = std::thread([this] { serve(); });
}

HostCommunicator::~HostCommunicator() {
  bool busy;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    busy = running_ || !queue_.empty();
    if (busy && failure_.empty()) failure_ = "the communicator was closed";
  }
  if (busy) engine_->interrupt("the communicator was closed while a call was under way");
  ready_.notify_one();
  thread_.join();
}

void HostCommunicator::check(const char* call, const Tensor& x) const {
  require(x.defined() && &x.device() == device_.get(), "ERR_DEVICE", call,
          ": expected a tensor on the communicator's device");
  require(x.is_contiguous(), "ERR_SHAPE", call, ": expected a contiguous tensor, got ", x.shape(),
          " strides ", x.strides());
  require(x.dtype() == DType::f32 || x.dtype() == DType::bf16 || x.dtype() == DType::f16, "ERR_DTYPE", call,
          ": expected f32, bf16 or f16, got ", name_of(x.dtype()));
}

void HostCommunicator::check_parts(const char* call, const Tensor& whole, const Tensor& part) const {
  check(call, whole);
  check(call, part);
  require(whole.dtype() == part.dtype(), "ERR_DTYPE", call, ": expected one dtype, got ",
          name_of(whole.dtype()), " and ", name_of(part.dtype()));
  require(whole.numel() == part.numel() * size_, "ERR_SHAPE", call, ": expected ", size_, " parts of ",
          part.numel(), " elements, got ", whole.numel(), " elements");
}

Event HostCommunicator::all_reduce(const Tensor& x, const ReduceArgs& args) {
  check("all_reduce", x);
  return post({CollectiveKind::all_reduce, 0, x, x, args, 0, x.numel(), x.dtype()});
}

Event HostCommunicator::reduce_scatter(const Tensor& out, const Tensor& x, const ReduceArgs& args) {
  check_parts("reduce_scatter", x, out);
  return post({CollectiveKind::reduce_scatter, 0, out, x, args, 0, out.numel(), x.dtype()});
}

Event HostCommunicator::all_gather(const Tensor& out, const Tensor& x) {
  check_parts("all_gather", out, x);
  return post({CollectiveKind::all_gather, 0, out, x, {}, 0, x.numel(), x.dtype()});
}

Event HostCommunicator::broadcast(const Tensor& x, int root) {
  check("broadcast", x);
  require(root >= 0 && root < size_, "ERR_ARGUMENT", "broadcast: expected a root from 0 to ", size_ - 1,
          ", got ", root);
  return post({CollectiveKind::broadcast, 0, x, x, {}, root, x.numel(), x.dtype()});
}

Event HostCommunicator::barrier() { return post({}); }

void HostCommunicator::abort(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = "aborted: " + reason;
  }
  engine_->interrupt(reason);
}

Event HostCommunicator::post(CollectiveCall call) {
  auto event = std::make_shared<HostEvent>();
  {
    const std::lock_guard lock(mutex_);
    call.number = ++calls_;
    if (!failure_.empty()) fail_communication(call.name() + ": " + failure_);
    queue_.push_back({std::move(call), event});
  }
  ready_.notify_one();
  return {event};
}

void HostCommunicator::serve() {
  for (;;) {
    Entry entry;
    {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [&] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) return;
      entry = std::move(queue_.front());
      queue_.pop_front();
      running_ = true;
    }
    std::exception_ptr failure = attempt(entry.call);
    {
      const std::lock_guard lock(mutex_);
      running_ = false;
    }
    entry.call = {};  // the tensors go before anybody is told
    entry.event->finish(std::move(failure));
  }
}

/// Runs a call; the answer is its failure, with the call's name. The first failure stays.
std::exception_ptr HostCommunicator::attempt(const CollectiveCall& call) {
  std::string reason, hint;
  try {
    std::string before;
    {
      const std::lock_guard lock(mutex_);
      before = failure_;
    }
    if (!before.empty()) fail_communication(before);
    engine_->run(call);
    return nullptr;
  } catch (const Error& error) {
    reason = error.what();
    hint = error.hint;
  } catch (const std::exception& error) {
    reason = error.what();
  }
  const std::string told = call.name() + ": " + reason;
  bool first;
  {
    const std::lock_guard lock(mutex_);
    first = failure_.empty();
    if (first) failure_ = told;
  }
  if (first) engine_->interrupt(told);
  return std::make_exception_ptr(Error("ERR_COMMUNICATION", told, hint));
}

}  // namespace danceflux
