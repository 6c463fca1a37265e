// Streams, events and host callbacks, as the runtime's calls.
#include <pthread.h>

#include <chrono>
#include <condition_variable>

#include "ascend_double/runtime/stream.h"

namespace ascend_double {
namespace {

constexpr std::size_t kSyncEvents = 65536;  // the pool of one device

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Event& event_of(aclrtEvent handle) {
  Context& context = current_context();
  Event& event = events().get(handle, ACL_ERROR_RT_PARAM_INVALID, ACL_ERROR_INVALID_PARAM);
  if (event.context != &context)
    refuse(ACL_ERROR_RT_STREAM_CONTEXT, "the event belongs to another context than the thread's current one");
  return event;
}

std::shared_ptr<Recording> last_recording(Event& event) {
  const std::scoped_lock lock(event.mutex);
  return event.last;
}

aclrtEvent create_event(std::uint32_t flags, bool ex) {
  Context& context = current_context();
  if (!ex && (flags & ACL_EVENT_SYNC)) {
    std::size_t taken = 0;
    events().each([&](Event& event) { taken += !event.ex && (event.flags & ACL_EVENT_SYNC) ? 1 : 0; });
    if (taken >= kSyncEvents) refuse(ACL_ERROR_RT_NO_EVENT_RESOURCE, "the pool of SYNC events is used up");
  }
  Event* event = new Event;
  event->context = &context;
  event->flags = flags;
  event->ex = ex;
  return events().add(event);
}

int finished(Stream& stream) {
  std::string text;
  const int code = stream.error(&text);
  if (code) refuse(code, "%s", text.c_str());
  return ACL_SUCCESS;
}

int synchronize(Stream& stream, int timeout_ms) {
  if (!stream.wait(stream.enqueued(), timeout_ms))
    refuse(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "the stream was not done after %d ms", timeout_ms);
  return finished(stream);
}

}  // namespace

// ---- streams
// -----------------------------------------------------------------------------------------------------------------
ENTRY(acl, aclrtCreateStream, aclrtStream* out) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *out = streams().add(new Stream(&current_context()));
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtCreateStreamWithConfig, aclrtStream* out, std::uint32_t priority, std::uint32_t flags) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  if (priority > 7 || (flags & ~7u))
    refuse(ACL_ERROR_RT_PARAM_INVALID, "priority %u, flags %u", priority, flags);
  *out = streams().add(new Stream(&current_context()));
  return ACL_SUCCESS;
}

static int destroy_stream(aclrtStream handle) {
  if (!handle) refuse(ACL_ERROR_INVALID_PARAM, "expected a stream");
  Stream& stream = stream_of(handle);
  stream.close();
  streams().remove(handle);
  return ACL_SUCCESS;
}
ENTRY(acl, aclrtDestroyStream, aclrtStream handle) { return destroy_stream(handle); }
ENTRY(acl, aclrtDestroyStreamForce, aclrtStream handle) { return destroy_stream(handle); }

ENTRY(acl, aclrtSetStreamFailureMode, aclrtStream handle, std::uint64_t mode) {
  if (!handle || mode > 1) refuse(ACL_ERROR_INVALID_PARAM, "expected a stream and 0 or 1");
  stream_of(handle).failure_mode = mode;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtSynchronizeStream, aclrtStream handle) { return synchronize(stream_of(handle), -1); }

ENTRY(acl, aclrtSynchronizeStreamWithTimeout, aclrtStream handle, std::int32_t ms) {
  return synchronize(stream_of(handle), ms);
}

ENTRY(acl, aclrtSynchronizeDevice) {
  Context& context = current_context();
  std::vector<Stream*> own;
  streams().each([&](Stream& stream) {
    if (stream.context->device == context.device) own.push_back(&stream);
  });
  for (Stream* stream : own) stream->kick();
  for (Stream* stream : own) stream->wait(stream->enqueued());
  for (Stream* stream : own) finished(*stream);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtStreamQuery, aclrtStream handle, int* status) {
  if (!status) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  Stream& stream = stream_of(handle);
  *status = stream.executed() == stream.enqueued() ? 0 : 1;
  stream.kick();
  return finished(stream);
}

// ---- events
// ------------------------------------------------------------------------------------------------------------------
ENTRY(acl, aclrtCreateEvent, aclrtEvent* out) {
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  *out = create_event(ACL_EVENT_SYNC | ACL_EVENT_CAPTURE_STREAM_PROGRESS | ACL_EVENT_TIME_LINE, false);
  return ACL_SUCCESS;
}

static void check_event_flags(aclrtEvent* out, std::uint32_t flags) {
  constexpr std::uint32_t known =
      ACL_EVENT_SYNC | ACL_EVENT_CAPTURE_STREAM_PROGRESS | ACL_EVENT_TIME_LINE | ACL_EVENT_EXTERNAL;
  if (!out) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  if (flags == 0 || (flags & ~known)) refuse(ACL_ERROR_RT_PARAM_INVALID, "unknown flags %u", flags);
}

ENTRY(acl, aclrtCreateEventWithFlag, aclrtEvent* out, std::uint32_t flags) {
  check_event_flags(out, flags);
  *out = create_event(flags, false);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtCreateEventExWithFlag, aclrtEvent* out, std::uint32_t flags) {
  check_event_flags(out, flags);
  *out = create_event(flags, true);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtDestroyEvent, aclrtEvent handle) {
  events().get(handle, ACL_ERROR_RT_PARAM_INVALID, ACL_ERROR_INVALID_PARAM);
  events().remove(handle);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtRecordEvent, aclrtEvent event_handle, aclrtStream stream_handle) {
  Event& event = event_of(event_handle);
  Stream& stream = stream_of(stream_handle);
  const auto recording = std::make_shared<Recording>();
  recording->stream = &stream;
  recording->number = stream.enqueue({"aclrtRecordEvent", {}, [recording] {
                                        recording->ms = now_ms();
                                        recording->done = true;
                                      }});
  const std::scoped_lock lock(event.mutex);
  event.last = recording;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtStreamWaitEvent, aclrtStream stream_handle, aclrtEvent event_handle) {
  Event& event = event_of(event_handle);
  Stream& stream = stream_of(stream_handle);
  if (!event.ex && !(event.flags & ACL_EVENT_SYNC))
    refuse(ACL_ERROR_RT_PARAM_INVALID, "the event was created without ACL_EVENT_SYNC");
  const std::shared_ptr<Recording> recording = last_recording(event);
  if (!recording) {
    if (event.ex) return ACL_SUCCESS;
    refuse(ACL_ERROR_RT_PARAM_INVALID, "the event was never recorded: the stream would wait for ever");
  }
  if (recording->stream == &stream) return ACL_SUCCESS;
  stream.enqueue({"aclrtStreamWaitEvent", {}, [recording] {
                    if (!recording->done && streams().alive(recording->stream))
                      recording->stream->wait(recording->number);
                  }});
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtSynchronizeEvent, aclrtEvent handle) {
  const std::shared_ptr<Recording> recording = last_recording(event_of(handle));
  if (!recording || !streams().alive(recording->stream)) return ACL_SUCCESS;
  recording->stream->wait(recording->number);
  return finished(*recording->stream);
}

// 1 complete, 0 not ready.
ENTRY(acl, aclrtQueryEventStatus, aclrtEvent handle, int* status) {
  if (!status) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  Event& event = event_of(handle);
  const std::shared_ptr<Recording> recording = last_recording(event);
  *status = recording ? recording->done.load() : event.ex;
  if (!recording || recording->done || !streams().alive(recording->stream)) return ACL_SUCCESS;
  recording->stream->kick(recording->number);
  // An event behind a failure may never be reached: who polls must be told.
  return finished(*recording->stream);
}

// 0 complete, 1 not ready: the other way round.
static int query_inverse(aclrtEvent handle, int* status) {
  if (!status) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  const std::shared_ptr<Recording> recording = last_recording(event_of(handle));
  *status = recording && !recording->done ? 1 : 0;
  if (*status && streams().alive(recording->stream)) recording->stream->kick(recording->number);
  return ACL_SUCCESS;
}
ENTRY(acl, aclrtQueryEvent, aclrtEvent handle, int* status) { return query_inverse(handle, status); }
ENTRY(acl, aclrtQueryEventWaitStatus, aclrtEvent handle, int* status) {
  return query_inverse(handle, status);
}

ENTRY(acl, aclrtEventElapsedTime, float* ms, aclrtEvent first, aclrtEvent second) {
  if (!ms) refuse(ACL_ERROR_INVALID_PARAM, "expected a pointer");
  double at[2];
  const aclrtEvent handles[2] = {first, second};
  for (int i = 0; i < 2; ++i) {
    Event& event = event_of(handles[i]);
    if (!(event.flags & ACL_EVENT_TIME_LINE))
      refuse(ACL_ERROR_RT_PARAM_INVALID, "the event was created without ACL_EVENT_TIME_LINE");
    const std::shared_ptr<Recording> recording = last_recording(event);
    if (!recording || !recording->done) refuse(ACL_ERROR_RT_PARAM_INVALID, "the event is not complete");
    at[i] = recording->ms;
  }
  *ms = static_cast<float>(at[1] - at[0]);
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtResetEvent, aclrtEvent handle, aclrtStream stream_handle) {
  Event& event = event_of(handle);
  stream_of(stream_handle);
  if (event.ex) {
    violation("aclrtResetEvent of an event that aclrtCreateEventExWithFlag made");
    refuse(ACL_ERROR_RT_PARAM_INVALID, "an Ex event must not be reset");
  }
  if (!(event.flags & ACL_EVENT_SYNC)) refuse(ACL_ERROR_RT_PARAM_INVALID, "only a SYNC event can be reset");
  const std::scoped_lock lock(event.mutex);
  event.last = nullptr;
  return ACL_SUCCESS;
}

// ---- callbacks: a thread that subscribed to the stream runs them when it asks
// ---------------------------------------------
namespace {
struct Callback {
  void (*function)(void*);
  void* data;
  std::shared_ptr<Recording> finished;
};
struct Callbacks {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::uint64_t, std::deque<Callback>> by_thread;
};
Callbacks& callbacks() {
  static Callbacks& only = *new Callbacks;
  return only;
}
}  // namespace

ENTRY(acl, aclrtSubscribeReport, std::uint64_t thread, aclrtStream handle) {
  stream_of(handle).subscriber = thread;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtUnSubscribeReport, std::uint64_t /*thread*/, aclrtStream handle) {
  stream_of(handle).subscriber = 0;
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtLaunchCallback, void (*function)(void*), void* data, int /*block*/, aclrtStream handle) {
  Stream& stream = stream_of(handle);
  const std::uint64_t thread = stream.subscriber;
  if (!function) refuse(ACL_ERROR_INVALID_PARAM, "expected a function");
  if (!thread) refuse(ACL_ERROR_RT_PARAM_INVALID, "no thread subscribed to this stream");
  const std::uint64_t number =
      stream.enqueue({"aclrtLaunchCallback", {}, [=] {
                        const auto finished = std::make_shared<Recording>();
                        Callbacks& all = callbacks();
                        std::unique_lock lock(all.mutex);
                        all.by_thread[thread].push_back({function, data, finished});
                        all.changed.notify_all();
                        all.changed.wait(lock, [&] { return finished->done.load(); });
                      }});
  stream.kick(number);  // the host may wait for nothing but the callback
  return ACL_SUCCESS;
}

ENTRY(acl, aclrtProcessReport, std::int32_t ms) {
  Callbacks& all = callbacks();
  const std::uint64_t self = static_cast<std::uint64_t>(pthread_self());
  std::unique_lock lock(all.mutex);
  std::deque<Callback>& own = all.by_thread[self];
  if (!all.changed.wait_for(lock, std::chrono::milliseconds(ms < 0 ? 1 << 30 : ms),
                            [&] { return !own.empty(); }))
    refuse(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "no report within %d ms", ms);
  const Callback next = own.front();
  own.pop_front();
  lock.unlock();
  next.function(next.data);
  lock.lock();
  next.finished->done = true;
  all.changed.notify_all();
  return ACL_SUCCESS;
}

ENTRY9(acl, aclrtLaunchHostFunc, aclrtStream handle, void (*function)(void*), void* data) {
  if (!function) refuse(ACL_ERROR_INVALID_PARAM, "expected a function");
  Stream& stream = stream_of(handle);
  const std::uint64_t number = stream.enqueue({"aclrtLaunchHostFunc", {}, [=] { function(data); }});
  stream.kick(number);
  return ACL_SUCCESS;
}

}  // namespace ascend_double
