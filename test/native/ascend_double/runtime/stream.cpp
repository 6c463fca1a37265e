#include "ascend_double/runtime/stream.h"

#include <chrono>

namespace ascend_double {
namespace {

constexpr std::uint64_t kMostPending = 256;

bool overlap(const Touch& a, const Touch& b) {
  if (!a.write && !b.write) return false;
  const char* a_begin = static_cast<const char*>(a.begin);
  const char* b_begin = static_cast<const char*>(b.begin);
  return a_begin < b_begin + b.bytes && b_begin < a_begin + a.bytes;
}

}  // namespace

Handles<Context>& contexts() {
  static auto& all = *new Handles<Context>("context");
  return all;
}
Handles<Stream>& streams() {
  static auto& all = *new Handles<Stream>("stream");
  return all;
}
Handles<Event>& events() {
  static auto& all = *new Handles<Event>("event");
  return all;
}

Stream::Stream(Context* owner) : context(owner) {}
Stream::~Stream() { close(); }

std::uint64_t Stream::enqueue(Task task) {
  task.fault = take_held_fault();
  const std::string policy = setting("STREAMS", "lazy");
  const std::scoped_lock lock(mutex_);
  if (!thread_.joinable()) thread_ = std::thread([this] { serve(); });
  pending_.push_back(std::move(task));
  ++enqueued_;
  if (policy == "eager" || (policy == "random" && random_bits() % 4 == 0)) target_ = enqueued_;
  if (enqueued_ - executed_ > kMostPending) target_ = std::max(target_, enqueued_ - kMostPending / 2);
  wake_.notify_all();
  return enqueued_;
}

void Stream::kick(std::uint64_t number) {
  const std::scoped_lock lock(mutex_);
  target_ = std::max(target_, number ? number : enqueued_);
  wake_.notify_all();
}

bool Stream::wait(std::uint64_t number, int timeout_ms) {
  kick(number);
  std::unique_lock lock(mutex_);
  const auto reached = [&] { return executed_ >= number; };
  if (timeout_ms < 0) {
    done_.wait(lock, reached);
    return true;
  }
  return done_.wait_for(lock, std::chrono::milliseconds(timeout_ms), reached);
}

std::uint64_t Stream::enqueued() {
  const std::scoped_lock lock(mutex_);
  return enqueued_;
}

std::uint64_t Stream::executed() {
  const std::scoped_lock lock(mutex_);
  return executed_;
}

int Stream::error(std::string* text) {
  const std::scoped_lock lock(mutex_);
  if (text) *text = error_text_;
  return error_;
}

std::string Stream::conflict(const Touch& touch) {
  const std::scoped_lock lock(mutex_);
  for (const Task& task : pending_)
    for (const Touch& own : task.touches)
      if (overlap(own, touch)) return task.name;
  return {};
}

std::string Stream::pending_named(const std::string& start) {
  const std::scoped_lock lock(mutex_);
  for (const Task& task : pending_)
    if (task.name.rfind(start, 0) == 0) return task.name;
  return {};
}

void Stream::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return closing_ || (!pending_.empty() && executed_ < target_); });
    if (pending_.empty()) return;
    // It stays in the queue while it runs: until then its memory is in use.
    Task& task = pending_.front();
    const bool dropped = error_ && failure_mode == 1;
    lock.unlock();
    if (setting("DELAY_US", std::int64_t{0}))
      std::this_thread::sleep_for(std::chrono::microseconds(
          random_bits() % static_cast<std::uint64_t>(setting("DELAY_US", std::int64_t{1}))));
    if (!dropped) run_one(task);
    lock.lock();
    Task finished = std::move(pending_.front());
    pending_.pop_front();
    ++executed_;
    done_.notify_all();
    lock.unlock();
    finished = {};  // what it holds may ask for this stream while it goes
    lock.lock();
  }
}

void Stream::run_one(Task& task) {
  int code = task.fault;
  std::string text = text_of("%s: injected device fault %d", task.name.c_str(), code);
  if (!code) {
    try {
      task.run();
      return;
    } catch (const Refusal& refusal) {
      code = refusal.code;
      text = text_of("%s: %s", task.name.c_str(), refusal.text.c_str());
    } catch (const std::exception& error) {
      code = ACL_ERROR_RT_AICORE_EXCEPTION;
      text = text_of("%s: %s", task.name.c_str(), error.what());
    }
  }
  const std::scoped_lock lock(mutex_);
  if (error_) return;
  error_ = code;
  error_text_ = std::move(text);
}

void Stream::close() {
  {
    const std::scoped_lock lock(mutex_);
    closing_ = true;
    target_ = enqueued_;
    wake_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

Stream& stream_of(aclrtStream handle) {
  Context& context = current_context();
  if (!handle) {
    const std::scoped_lock lock(context.mutex);
    if (!context.default_stream) context.default_stream = streams().add(new Stream(&context));
    return *context.default_stream;
  }
  Stream& stream = streams().get(handle, ACL_ERROR_RT_PARAM_INVALID, ACL_ERROR_RT_PARAM_INVALID);
  if (stream.context != &context)
    refuse(ACL_ERROR_RT_STREAM_CONTEXT,
           "the stream belongs to another context than the thread's current one");
  return stream;
}

void check_races(const Touch& touch, const char* who) {
  std::string name;
  streams().each([&](Stream& stream) {
    if (name.empty()) name = stream.conflict(touch);
  });
  if (!name.empty())
    violation("%s while queued work (%s) has not finished with that memory", who, name.c_str());
}

}  // namespace ascend_double
