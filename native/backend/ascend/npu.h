// One NPU as this process holds it: the context that threads work in, the stream of its operators, events,
// and pinned memory that uploads go through.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/ascend/errors.h"
#include "backend/ascend/libraries.h"
#include "backend/ascend/settings.h"

namespace danceflux::ascend {

class Npu;

/// A point of a stream: what Event::handle points to. May outlive the backend, and be let go on any thread.
class DeviceEvent {
 public:
  DeviceEvent(std::shared_ptr<Npu> npu, AclEvent raw) : npu_(std::move(npu)), raw_(raw) {}
  ~DeviceEvent();
  DeviceEvent(const DeviceEvent&) = delete;
  DeviceEvent& operator=(const DeviceEvent&) = delete;
  AclEvent raw() const { return raw_; }
  const Npu& npu() const { return *npu_; }
  /// Has the stream come to it? Throws what the device says of work that failed.
  bool complete() const;

 private:
  const std::shared_ptr<Npu> npu_;
  const AclEvent raw_;
};

/// Collectives under way on a device, as its waits see them: a rank that never comes must not make the host
/// wait for ever, and HCCL cannot be told to stop.
class CollectiveWatch {
 public:
  std::atomic<int> under_way{0};

  /// The first failure stays.
  void fail(const std::string& reason);
  /// Throws ERR_COMMUNICATION once there was a failure.
  void throw_if_failed() const;
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  std::string failure() const;

 private:
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  std::string failure_;
};

class Npu : public std::enable_shared_from_this<Npu> {
 public:
  /// Throws ERR_DEVICE with CANN's words; ERR_OPTION when another device of this process is open at another
  /// level of determinism, which CANN keeps for the whole process.
  static std::shared_ptr<Npu> open(int index, const Settings& settings);
  ~Npu();
  Npu(const Npu&) = delete;
  Npu& operator=(const Npu&) = delete;

  const Acl& acl() const { return cann_.acl; }
  const Cann& cann() const { return cann_; }
  int index() const { return index_; }
  AclStream stream() const { return stream_; }
  const DeterminismPlan& determinism() const { return plan_; }

  /// The calling thread works on this device from here on.
  void bind() const;
  /// Throws unless `status` is 0; `what` is "matmul: aclnnMm".
  void check(AclStatus status, const char* what) const {
    if (status != kAclSuccess) [[unlikely]]
      fail_acl(acl(), status, what);
  }

  AclStream make_stream() const;
  std::shared_ptr<DeviceEvent> record(AclStream stream);
  /// What comes later on `stream` waits for `event`; the host does not.
  void wait(AclStream stream, const DeviceEvent& event) const;
  /// The host waits for all that the stream holds. Where collectives are under way it looks at them meanwhile
  /// and throws their failure; it throws ERR_ABORTED when the job of this thread is stopped.
  void synchronize(const char* op);

  /// To device memory, in the stream's order; `host` may be reused when it returns.
  void upload(void* device, const void* host, std::size_t bytes);

  void watch(const std::shared_ptr<CollectiveWatch>& watch);
  /// Throws the failure of a collective of this device.
  void throw_if_failed() const;
  /// A collective failed that was under way: what is on the streams may never end, so nothing waits for it or
  /// gives its memory back any more.
  void abandon() { abandoned_ = true; }
  bool abandoned() const { return abandoned_; }

 private:
  friend class DeviceEvent;
  struct Staging {
    void* host;
    std::size_t bytes;
    AclEvent busy;  // recorded behind the last copy from here; null: never used
  };

  Npu(const Cann& cann, int index, const Settings& settings);
  void start();
  void set_determinism() const;
  void close() noexcept;
  AclEvent take_event();
  void give_event(AclEvent event) noexcept;
  Staging& staging(std::size_t bytes);
  bool collectives_under_way() const;
  template <class Done>
  void poll(Done done) const;

  const Cann& cann_;
  const int index_;
  const DeterminismPlan plan_;
  const std::uint64_t id_;  // never used twice, as addresses of contexts are
  bool set_ = false, counted_ = false;
  std::atomic<bool> abandoned_{false};
  AclContext context_ = nullptr;
  AclStream stream_ = nullptr;
  std::mutex events_mutex_;
  std::vector<AclEvent> events_;  // to be used again
  std::vector<Staging> staging_;
  mutable std::mutex watches_mutex_;
  std::vector<std::weak_ptr<CollectiveWatch>> watches_;
};

}  // namespace danceflux::ascend
