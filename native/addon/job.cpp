#include "addon/job.h"

#include <stdexcept>

#include "addon/environment.h"
#include "core/cancel.h"
#include "core/error.h"

namespace danceflux::addon {
namespace {

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

JobHome::JobHome(Napi::Env env) : channel_(Channel::New(env, "danceflux jobs", 0, 1, this)) {
  channel_.Unref(env);
}

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
  if (closed_) return;
  if (channel_.NonBlockingCall(message.get()) == napi_ok)
    message.release();
  else
    closed_ = true;  // the environment is ending, and a channel that said so once must not be asked again
}

void JobHome::cancel_all() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (const auto& job : under_way_) job->cancelled = true;
}

void JobHome::settle(Napi::Env env, Napi::Function, JobHome* home, std::shared_ptr<Job>* message) {
  const std::unique_ptr<std::shared_ptr<Job>> owned(message);
  if (static_cast<napi_env>(env) == nullptr || !home)
    return;  // the environment is gone: nobody is left to tell
  const std::shared_ptr<Job> job = *owned;
  {
    const std::lock_guard lock(home->mutex_);
    home->under_way_.erase(job);
    if (home->under_way_.empty()) home->channel_.Unref(env);
  }
  const Napi::HandleScope scope(env);
  const auto result = std::move(job->result);  // its tensors go here, whoever else still has the job
  if (!job->error) {
    try {
      job->deferred->Resolve(result(env));
      return;
    } catch (...) {
      job->error = std::current_exception();
    }
  }
  job->deferred->Reject(to_js_error(env, job->error).Value());
}

struct DeviceThread::State {
  struct Entry {
    std::shared_ptr<Job> job;
    std::shared_ptr<JobHome> home;
  };
  std::mutex mutex;
  std::condition_variable ready;
  std::deque<Entry> queue;
  std::shared_ptr<Job> running;
  bool stopping = false;
  std::thread thread;

  // Every device thread of the process, for a clean exit. Never destroyed: static destructors would race with
  // live threads.
  struct Registry {
    std::mutex mutex;
    std::set<std::shared_ptr<State>> all;
  };
  static Registry& registry() {
    static auto* instance = new Registry;
    return *instance;
  }

  static void loop(const std::shared_ptr<State>& state);
  static void finish(const Entry& entry);
  void stop();
};

DeviceThread::DeviceThread() : state_(std::make_shared<State>()) {
  {
    const std::lock_guard lock(State::registry().mutex);
    State::registry().all.insert(state_);
  }
  const std::lock_guard lock(state_->mutex);
  state_->thread = std::thread([state = state_] { State::loop(state); });
}

DeviceThread::~DeviceThread() {
  stop();
  const std::lock_guard lock(State::registry().mutex);
  State::registry().all.erase(state_);
}

void DeviceThread::post(std::shared_ptr<Job> job, std::shared_ptr<JobHome> home) {
  {
    const std::lock_guard lock(state_->mutex);
    require(!state_->stopping, "ERR_DISPOSED", "device: it was disposed");
    state_->queue.push_back({std::move(job), std::move(home)});
  }
  state_->ready.notify_one();
}

void DeviceThread::stop() { state_->stop(); }

void DeviceThread::State::stop() {
  std::thread ending;
  {
    const std::lock_guard lock(mutex);
    stopping = true;
    if (running) running->cancelled = true;
    for (const Entry& entry : queue) entry.job->cancelled = true;
    ending = std::move(thread);  // two may ask at once: one joins
  }
  ready.notify_all();
  if (!ending.joinable()) return;
  // The last handle of a device may fall on its own thread (a job's tensors hold the device): it cannot join
  // itself.
  if (ending.get_id() == std::this_thread::get_id())
    ending.detach();
  else
    ending.join();
}

void DeviceThread::stop_all() {
  std::set<std::shared_ptr<State>> all;
  {
    const std::lock_guard lock(State::registry().mutex);
    all = State::registry().all;
  }
  for (const std::shared_ptr<State>& state : all) state->stop();
}

void DeviceThread::State::loop(const std::shared_ptr<State>& state) {
  for (;;) {
    Entry entry;
    {
      std::unique_lock lock(state->mutex);
      state->ready.wait(lock, [&] { return state->stopping || !state->queue.empty(); });
      if (state->queue.empty()) return;
      entry = std::move(state->queue.front());
      state->queue.pop_front();
      state->running = entry.job;
    }
    run(*entry.job);
    finish(entry);
    const std::lock_guard lock(state->mutex);
    state->running = nullptr;
    // The entry goes after the lock: with a job may go the last handle of this very device, whose end takes
    // the lock.
  }
}

/// Delivers the job, or sends it to where its rest is done.
void DeviceThread::State::finish(const Entry& entry) {
  Job& job = *entry.job;
  if (job.rest && !job.error) {
    job.work = std::move(job.rest);
    const auto other = std::move(job.rest_on);
    try {
      return other->post(entry.job, entry.home);
    } catch (...) {
      job.error = std::current_exception();
      job.work = nullptr;
    }
  }
  entry.home->deliver(entry.job);
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
  } catch (const std::length_error&) {  // a container asked for more than can be addressed
    Napi::Error result = Napi::Error::New(env, "out of host memory");
    result.Set("code", Napi::String::New(env, "ERR_MEMORY"));
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
