#include "backend/ascend/npu.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/cancel.h"
#include "core/error.h"

namespace danceflux::ascend {
namespace {

// Uploads go through pinned blocks of two sizes, so that a table of timesteps does not wait for weights.
constexpr std::size_t kSmallBlock = 64 << 10, kLargeBlock = 4 << 20;
constexpr std::size_t kMostSmall = 32, kMostLarge = 4;
constexpr std::size_t kMostSpareEvents = 256;

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

/// Levels of determinism of the devices that are open: CANN has one for the process.
struct ProcessLevel {
  std::mutex mutex;
  std::int64_t level = 0;
  int devices = 0;
};
ProcessLevel& process_level() {
  static ProcessLevel& level = *new ProcessLevel;
  return level;
}

thread_local std::uint64_t bound_to = 0;

}  // namespace

// ---- events ----------------------------------------------------------------------------------------------

DeviceEvent::~DeviceEvent() { npu_->give_event(raw_); }

bool DeviceEvent::complete() const {
  npu_->bind();
  AclEventStatus status = kEventNotReady;
  npu_->check(npu_->acl().aclrtQueryEventStatus(raw_, &status), "event: aclrtQueryEventStatus");
  return status == kEventComplete;
}

void CollectiveWatch::fail(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (failed()) return;
  failure_ = reason;
  failed_.store(true, std::memory_order_release);
}

std::string CollectiveWatch::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void CollectiveWatch::throw_if_failed() const {
  if (failed()) [[unlikely]]
    throw Error("ERR_COMMUNICATION", failure());
}

// ---- opening and closing ---------------------------------------------------------------------------------

std::shared_ptr<Npu> Npu::open(int index, const Settings& settings) {
  const std::shared_ptr<Npu> npu(new Npu(ascend::cann(), index, settings));
  npu->start();  // its destructor undoes what was done when this throws
  return npu;
}

Npu::Npu(const Cann& cann, int index, const Settings& settings)
    : cann_(cann),
      index_(index),
      plan_(plan_determinism(settings.determinism, cann.version)),
      id_(next_id()) {}

void Npu::start() {
  require(cann_.failure.empty(), "ERR_DEVICE", "ascend: ", cann_.failure);
  {
    ProcessLevel& process = process_level();
    const std::lock_guard lock(process.mutex);
    require(process.devices == 0 || process.level == plan_.level, "ERR_OPTION",
            "ascend: determinism: expected the level of the devices that this process has open (",
            process.level, "), got ", plan_.level);
    process.level = plan_.level;
    ++process.devices;
    counted_ = true;
  }
  check(acl().aclrtSetDevice(index_), "open: aclrtSetDevice");
  set_ = true;
  check(acl().aclrtGetCurrentContext(&context_), "open: aclrtGetCurrentContext");
  bound_to = id_;
  set_determinism();
  stream_ = make_stream();
}

/// In both scopes: newer operators read that of the process, older ones and the gradient of attention that of
/// the context. Before the first operator is planned, and anew for each context.
void Npu::set_determinism() const {
  for (const auto& [option, value] : plan_.options) {
    check(acl().aclrtSetSysParamOpt(option, value), "open: aclrtSetSysParamOpt");
    check(acl().aclrtCtxSetSysParamOpt(option, value), "open: aclrtCtxSetSysParamOpt");
  }
}

AclStream Npu::make_stream() const {
  bind();
  AclStream stream = nullptr;
  check(acl().aclrtCreateStreamWithConfig
            ? acl().aclrtCreateStreamWithConfig(&stream, 0, kStreamFastLaunch | kStreamFastSync)
            : acl().aclrtCreateStream(&stream),
        "open: aclrtCreateStream");
  // Otherwise operators go on with what a failed one left.
  const AclStatus status = acl().aclrtSetStreamFailureMode(stream, kStopOnFailure);
  if (status != kAclSuccess) {
    const std::string words = recent_words(acl());
    acl().aclrtDestroyStream(stream);
    fail("ERR_DEVICE", "open: aclrtSetStreamFailureMode: expected success, got ", status, " ", words);
  }
  return stream;
}

Npu::~Npu() { close(); }

void Npu::close() noexcept {
  try {
    if (set_ && context_ && !abandoned()) {
      bind();
      if (stream_) acl().aclrtSynchronizeStream(stream_);
      for (const AclEvent event : events_) acl().aclrtDestroyEvent(event);
      for (const Staging& block : staging_) {
        if (block.busy) acl().aclrtDestroyEvent(block.busy);
        acl().aclrtFreeHost(block.host);
      }
      if (stream_) acl().aclrtDestroyStream(stream_);
    }
    if (set_ && !abandoned()) acl().aclrtResetDevice(index_);
    acl().aclGetRecentErrMsg();  // of what failed here nobody is to hear later
  } catch (...) {
  }
  bound_to = 0;
  if (counted_) {
    ProcessLevel& process = process_level();
    const std::lock_guard lock(process.mutex);
    --process.devices;
  }
}

void Npu::bind() const {
  if (bound_to == id_) [[likely]]
    return;
  check(acl().aclrtSetCurrentContext(context_), "thread: aclrtSetCurrentContext");
  bound_to = id_;
}

// ---- events and waiting ----------------------------------------------------------------------------------

AclEvent Npu::take_event() {
  {
    const std::lock_guard lock(events_mutex_);
    if (!events_.empty()) {
      const AclEvent event = events_.back();
      events_.pop_back();
      return event;
    }
  }
  AclEvent event = nullptr;
  check(acl().aclrtCreateEventExWithFlag(&event, kEventSync), "record: aclrtCreateEventExWithFlag");
  return event;
}

/// Events made in this way may be recorded again and again.
void Npu::give_event(AclEvent event) noexcept {
  try {
    const std::lock_guard lock(events_mutex_);
    if (events_.size() < kMostSpareEvents) {
      events_.push_back(event);
      return;
    }
  } catch (...) {
  }
  try {
    bind();
    acl().aclrtDestroyEvent(event);
  } catch (...) {
  }
}

std::shared_ptr<DeviceEvent> Npu::record(AclStream stream) {
  bind();
  auto event = std::make_shared<DeviceEvent>(shared_from_this(), take_event());
  check(acl().aclrtRecordEvent(event->raw(), stream), "record: aclrtRecordEvent");
  return event;
}

void Npu::wait(AclStream stream, const DeviceEvent& event) const {
  bind();
  check(acl().aclrtStreamWaitEvent(stream, event.raw()), "wait: aclrtStreamWaitEvent");
}

void Npu::watch(const std::shared_ptr<CollectiveWatch>& watch) {
  const std::lock_guard lock(watches_mutex_);
  std::erase_if(watches_, [](const auto& each) { return each.expired(); });
  watches_.push_back(watch);
}

void Npu::throw_if_failed() const {
  const std::lock_guard lock(watches_mutex_);
  for (const auto& each : watches_) {
    if (const auto watch = each.lock()) watch->throw_if_failed();
  }
}

bool Npu::collectives_under_way() const {
  const std::lock_guard lock(watches_mutex_);
  return std::any_of(watches_.begin(), watches_.end(), [](const auto& each) {
    const auto watch = each.lock();
    return watch && (watch->under_way > 0 || watch->failed());
  });
}

template <class Done>
void Npu::poll(Done done) const {
  using namespace std::chrono;
  const auto began = steady_clock::now();
  while (!done()) {
    throw_if_cancelled();
    throw_if_failed();
    const auto waited = steady_clock::now() - began;
    if (waited > milliseconds(20)) {
      std::this_thread::sleep_for(milliseconds(1));
    } else if (waited > microseconds(50)) {
      std::this_thread::sleep_for(microseconds(50));
    }
  }
}

void Npu::synchronize(const char* op) {
  bind();
  if (collectives_under_way()) {
    const auto event = record(stream_);
    poll([&] { return event->complete(); });
  }
  // What operators did wrong shows here.
  const AclStatus status = acl().aclrtSynchronizeStream(stream_);
  if (status != kAclSuccess)
    fail_acl(acl(), status,
             std::string(op) + ": aclrtSynchronizeStream: work on ascend:" + std::to_string(index_));
}

// ---- uploads ---------------------------------------------------------------------------------------------

/// A block that no copy reads any more.
Npu::Staging& Npu::staging(std::size_t bytes) {
  const std::size_t size = bytes <= kSmallBlock ? kSmallBlock : kLargeBlock;
  const std::size_t most = size == kSmallBlock ? kMostSmall : kMostLarge;
  std::size_t count = 0;
  Staging* first = nullptr;
  for (Staging& block : staging_) {
    if (block.bytes != size) continue;
    ++count;
    if (!first) first = &block;
    AclEventStatus status = kEventNotReady;
    check(acl().aclrtQueryEventStatus(block.busy, &status), "upload: aclrtQueryEventStatus");
    if (status == kEventComplete) return block;
  }
  if (count < most) {
    Staging block{nullptr, size, take_event()};
    const AclStatus status = acl().aclrtMallocHost(&block.host, size);
    if (status != kAclSuccess) {
      give_event(block.busy);
      fail_acl(acl(), status, "upload: aclrtMallocHost");
    }
    staging_.push_back(block);
    return staging_.back();
  }
  poll([&] {
    AclEventStatus status = kEventNotReady;
    check(acl().aclrtQueryEventStatus(first->busy, &status), "upload: aclrtQueryEventStatus");
    return status == kEventComplete;
  });
  return *first;
}

void Npu::upload(void* device, const void* host, std::size_t bytes) {
  bind();
  auto* to = static_cast<char*>(device);
  const auto* from = static_cast<const char*>(host);
  while (bytes > 0) {
    const std::size_t piece = std::min(bytes, kLargeBlock);
    Staging& block = staging(piece);
    std::memcpy(block.host, from, piece);
    check(acl().aclrtMemcpyAsync(to, piece, block.host, piece, kHostToDevice, stream_),
          "upload: aclrtMemcpyAsync");
    check(acl().aclrtRecordEvent(block.busy, stream_), "upload: aclrtRecordEvent");
    to += piece;
    from += piece;
    bytes -= piece;
  }
}

}  // namespace danceflux::ascend
