// One persistent pool of threads per device.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

namespace danceflux::cpu {

/// A borrowed callable: no allocation, no ownership.
class TaskFunction {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, TaskFunction>>>
  TaskFunction(F&& body)  // NOLINT: implicit on purpose, so that a lambda can be passed
      : body_(const_cast<void*>(static_cast<const void*>(&body))),
        call_([](void* f, std::int64_t task, int worker) {
          (*static_cast<std::remove_reference_t<F>*>(f))(task, worker);
        }) {}
  void operator()(std::int64_t task, int worker) const { call_(body_, task, worker); }

 private:
  void* body_;
  void (*call_)(void*, std::int64_t, int);
};

/// Runs numbered tasks on `threads` threads, the caller among them. Which thread runs which task is left to
/// chance, so a task's result must not depend on it: split work on a fixed grid, never by the number of
/// threads.
class ThreadPool {
 public:
  /// 0: as many as the affinity mask of the process allows.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  /// body(task, worker) for task 0..tasks-1; worker 0..threads-1 names the thread (for scratch memory).
  /// Returns when all are done. Not reentrant; called from one thread at a time. `body` does not throw.
  void run(std::int64_t tasks, TaskFunction body);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
  int threads_;
};

}  // namespace danceflux::cpu
