#include "addon/job.h"

#include "addon/environment.h"
#include "core/cancel.h"
#include "core/error.h"

namespace danceflux::addon {
namespace {

// Every device thread of the process, for a clean exit. Never destroyed: static destructors would race with live threads.
struct Threads {
  std::mutex mutex;
  std::set<DeviceThread*> all;
};
Threads& threads() {
  static auto* instance = new Threads;
  return *instance;
}

void run(Job& job) {
  try {
    const CancelScope scope(&job.cancelled);
    throw_if_cancelled();
    job.work();
  } catch (...) {
    job.error = std::current_exception();
  }
  job.work = nullptr;  // tensors that the work held go back now, on the device's thread
}

}  // namespace

JobHome::JobHome(Napi::Env env) : channel_(Channel::New(env, "danceflux jobs", 0, 1, this)) { channel_.Unref(env); }

Napi::Promise JobHome::adopt(Napi::Env env, const std::shared_ptr<Job>& job) {
  job->deferred.emplace(Napi::Promise::Deferred::New(env));
  const std::lock_guard lock(mutex_);
  if (under_way_.empty()) channel_.Ref(env);  // a job under way keeps the event loop alive
  under_way_.insert(job);
  return job->deferred->Promise();
}

void JobHome::deliver(const std::shared_ptr<Job>& job) {
  auto message = std::make_unique<std::shared_ptr<Job>>(job);
  // Under the lock: cancel_all() must not take the channel away between the check and the call.
  const std::lock_guard lock(mutex_);
  if (!closed_ && channel_.NonBlockingCall(message.get()) == napi_ok) message.release();
}

void JobHome::cancel_all() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (const auto& job : under_way_) job->cancelled = true;
}

void JobHome::settle(Napi::Env env, Napi::Function, JobHome* home, std::shared_ptr<Job>* message) {
  const std::unique_ptr<std::shared_ptr<Job>> owned(message);
  if (static_cast<napi_env>(env) == nullptr || !home) return;  // the environment is gone: nobody is left to tell
  const std::shared_ptr<Job> job = *owned;
  {
    const std::lock_guard lock(home->mutex_);
    home->under_way_.erase(job);
    if (home->under_way_.empty()) home->channel_.Unref(env);
  }
  const Napi::HandleScope scope(env);
  if (!job->error) {
    try {
      job->deferred->Resolve(job->result(env));
      return;
    } catch (...) {
      job->error = std::current_exception();
    }
  }
  job->deferred->Reject(to_js_error(env, job->error).Value());
}

DeviceThread::DeviceThread() : thread_([this] { loop(); }) {
  const std::lock_guard lock(threads().mutex);
  threads().all.insert(this);
}

DeviceThread::~DeviceThread() {
  stop();
  const std::lock_guard lock(threads().mutex);
  threads().all.erase(this);
}

void DeviceThread::post(std::shared_ptr<Job> job, std::shared_ptr<JobHome> home) {
  {
    const std::lock_guard lock(mutex_);
    require(!stopping_, "ERR_DISPOSED", "device: it was disposed");
    queue_.push_back({std::move(job), std::move(home)});
  }
  ready_.notify_one();
}

void DeviceThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (running_) running_->cancelled = true;
    for (const Entry& entry : queue_) entry.job->cancelled = true;
  }
  ready_.notify_all();
  // The last handle of a device may fall on its own thread (a job's tensors hold the device): it cannot join itself.
  if (!thread_.joinable()) return;
  if (thread_.get_id() == std::this_thread::get_id()) thread_.detach();
  else thread_.join();
}

void DeviceThread::stop_all() {
  std::set<DeviceThread*> all;
  {
    const std::lock_guard lock(threads().mutex);
    all = threads().all;
  }
  for (DeviceThread* thread : all) thread->stop();
}

void DeviceThread::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ready_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const Entry entry = std::move(queue_.front());
    queue_.pop_front();
    running_ = entry.job;
    lock.unlock();
    run(*entry.job);
    entry.home->deliver(entry.job);
    lock.lock();
    running_ = nullptr;
  }
}

Napi::Error to_js_error(Napi::Env env, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Napi::Error& thrown) {
    return thrown;
  } catch (const Error& thrown) {
    Napi::Error result = Napi::Error::New(env, thrown.what());
    result.Set("code", Napi::String::New(env, thrown.code));
    if (!thrown.hint.empty()) result.Set("hint", Napi::String::New(env, thrown.hint));
    return result;
  } catch (const std::bad_alloc&) {
    Napi::Error result = Napi::Error::New(env, "out of host memory");
    result.Set("code", Napi::String::New(env, "ERR_MEMORY"));
    return result;
  } catch (const std::exception& thrown) {
    Napi::Error result = Napi::Error::New(env, thrown.what());
    result.Set("code", Napi::String::New(env, "ERR_INTERNAL"));
    return result;
  }
}

Napi::Object start_job(Napi::Env env, DeviceThread& thread, std::shared_ptr<Job> job) {
  const std::shared_ptr<JobHome> home = Environment::of(env).jobs;
  Napi::Object handle = Napi::Object::New(env);
  handle.Set("promise", home->adopt(env, job));
  const std::weak_ptr<Job> weak = job;
  handle.Set("abort", Napi::Function::New(env, [weak](const Napi::CallbackInfo&) {
               if (const auto running = weak.lock()) running->cancelled = true;
             }));
  try {
    thread.post(job, home);
  } catch (...) {  // a refusal is an answer too: the promise rejects
    job->error = std::current_exception();
    job->work = nullptr;
    home->deliver(job);
  }
  return handle;
}

}  // namespace danceflux::addon
