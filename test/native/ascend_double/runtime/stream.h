// Contexts, streams and events.
//
// A stream keeps its tasks until somebody makes it run: a synchronisation, a query, a wait of another stream
// that runs, or more than kMostPending tasks. So whoever reads a result without waiting for it finds poison,
// every time. With ASCEND_DOUBLE_STREAMS=eager a thread runs them at once; with =random, at once or later, by
// chance (seeded).
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "ascend_double/runtime/live.h"
#include "ascend_double/runtime/memory.h"

namespace ascend_double {

class Stream;

struct Context {
  int device = 0;
  bool is_default = false;
  std::mutex mutex;
  std::map<int, std::int64_t> options;  // aclrtCtxSetSysParamOpt
  Stream* default_stream = nullptr;
};

struct Task {
  std::string name;
  std::vector<Touch> touches;
  std::function<void()> run;
  int fault = 0;
};

class Stream {
 public:
  explicit Stream(Context* owner);
  ~Stream();

  /// Returns the number of the task, from 1 on.
  std::uint64_t enqueue(Task task);
  /// Lets the tasks up to `number` run (0: all that are queued).
  void kick(std::uint64_t number = 0);
  /// Waits until the task has run; false after timeout_ms (negative: no limit).
  bool wait(std::uint64_t number, int timeout_ms = -1);
  std::uint64_t enqueued();
  std::uint64_t executed();
  /// What a synchronisation answers: the first failure of a task, or 0. Sticks.
  int error(std::string* text = nullptr);
  /// The name of a queued task that has not run and conflicts with this access; empty: none.
  std::string conflict(const Touch& touch);
  /// The name of a task in the queue that begins like this; empty: none.
  std::string pending_named(const std::string& start);
  /// Runs out what is queued and ends the thread.
  void close();

  Context* const context;
  std::atomic<std::uint64_t> failure_mode{0};  // 1: tasks behind a failed one are dropped
  std::atomic<std::uint64_t> subscriber{0};    // thread that serves callbacks

 private:
  void serve();
  void run_one(Task& task);

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Task> pending_;
  std::uint64_t enqueued_ = 0, executed_ = 0, target_ = 0;
  bool closing_ = false;
  int error_ = 0;
  std::string error_text_;
  std::thread thread_;
};

/// One recording of an event.
struct Recording {
  Stream* stream;
  std::uint64_t number;
  std::atomic<bool> done{false};
  double ms = 0;
};

struct Event {
  Context* context = nullptr;
  std::uint32_t flags = 0;
  bool ex = false;  // made by aclrtCreateEventExWithFlag
  std::mutex mutex;
  std::shared_ptr<Recording> last;
};

Handles<Context>& contexts();
Handles<Stream>& streams();
Handles<Event>& events();

/// The calling thread's context; refuses with 107002 without one.
Context& current_context();
/// The stream of a handle (NULL: the context's own), of the current context; refuses with 107003 otherwise.
Stream& stream_of(aclrtStream handle);
/// What is recorded when the host or a free touches memory that queued work still needs.
void check_races(const Touch& touch, const char* who);

std::int64_t process_option(int option);

}  // namespace ascend_double
