// Jobs: work that JavaScript asks for, done on a device's thread, answered by a promise.
#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

namespace danceflux::addon {

class DeviceThread;

/// One job. `work` runs on the device thread, `result` on the JavaScript thread that asked. When `work`
/// leaves a `rest`, the job goes on with that on another thread: waiting, which must not hold up the device.
struct Job {
  std::function<void()> work, rest;
  std::shared_ptr<DeviceThread> rest_on;
  std::function<Napi::Value(Napi::Env)> result;
  std::atomic<bool> cancelled{false};
  std::exception_ptr error;
  std::optional<Napi::Promise::Deferred> deferred;  // touched on the JavaScript thread only
};

/// Where finished jobs come back to one JavaScript environment (the main thread or a worker). Knows the jobs
/// under way, so that it can stop them when the environment ends.
class JobHome {
 public:
  explicit JobHome(Napi::Env env);

  Napi::Promise adopt(Napi::Env env, const std::shared_ptr<Job>& job);
  /// Called by a device thread when `job` is done.
  void deliver(const std::shared_ptr<Job>& job);
  /// Sets the stop flag of every job under way.
  void cancel_all();

 private:
  static void settle(Napi::Env env, Napi::Function, JobHome* home, std::shared_ptr<Job>* job);
  using Channel = Napi::TypedThreadSafeFunction<JobHome, std::shared_ptr<Job>, settle>;

  Channel channel_;
  std::mutex mutex_;
  std::set<std::shared_ptr<Job>> under_way_;
  bool closed_ = false;
};

/// The thread of one device: runs jobs in the order in which they came.
class DeviceThread {
 public:
  DeviceThread();
  ~DeviceThread();
  DeviceThread(const DeviceThread&) = delete;
  DeviceThread& operator=(const DeviceThread&) = delete;

  void post(std::shared_ptr<Job> job, std::shared_ptr<JobHome> home);
  /// Stops the running job and those that wait, and joins. Idempotent; from any thread, its own included.
  void stop();
  /// Stops every device thread of the process.
  static void stop_all();

 private:
  struct State;
  std::shared_ptr<State> state_;  // the thread holds it too: it may outlive this handle
};

/// A JavaScript error of `error`, with code and hint. Must be called inside a catch-free context on the
/// JavaScript thread.
Napi::Error to_js_error(Napi::Env env, const std::exception_ptr& error);

/// The JavaScript side of a job: { promise, abort }.
Napi::Object start_job(Napi::Env env, DeviceThread& thread, std::shared_ptr<Job> job);

/// Posts work() -> R to the device thread and converts its result with convert(env, R&) on the JavaScript
/// thread.
template <class Work, class Convert>
Napi::Value submit(Napi::Env env, DeviceThread& thread, Work work, Convert convert) {
  using Result = decltype(work());
  auto job = std::make_shared<Job>();
  if constexpr (std::is_void_v<Result>) {
    job->work = std::move(work);
    job->result = [convert = std::move(convert)](Napi::Env env) { return convert(env); };
  } else {
    auto box = std::make_shared<std::optional<Result>>();
    job->work = [box, work = std::move(work)]() mutable { box->emplace(work()); };
    job->result = [box, convert = std::move(convert)](Napi::Env env) { return convert(env, **box); };
  }
  return start_job(env, thread, std::move(job));
}

/// For jobs that answer with nothing.
inline Napi::Value undefined(Napi::Env env) { return env.Undefined(); }

}  // namespace danceflux::addon
