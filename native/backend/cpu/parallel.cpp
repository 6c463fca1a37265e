#include "backend/cpu/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "backend/waiting.h"

namespace danceflux::cpu {
namespace {

// Longer than the gap between two ops of a running job, shorter than anything a person or an event loop
// notices.
constexpr std::chrono::microseconds kSpin{30};

int allowed_cores() {
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) return std::max(1, CPU_COUNT(&mask));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

// A task is claimed by counting `unclaimed` down. Whoever succeeds may read `body` and `total`: run() cannot
// return, and so cannot change them, before that task is counted in `finished`. A worker that wakes late
// finds nothing to claim and no harm is done. Sleeping is a handshake of two flags each way (store mine, then
// read yours, both sequentially consistent), so no wake-up is lost.
struct ThreadPool::Shared {
  alignas(64) std::atomic<std::int64_t> unclaimed{0};
  alignas(64) std::atomic<std::int64_t> finished{0};
  alignas(64) std::atomic<int> sleeping{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stop{false};
  std::int64_t total = 0;
  std::optional<TaskFunction> body;
  std::mutex mutex;
  std::condition_variable work, done;
  std::vector<std::thread> threads;

  void drain(int worker);
  void sleep_until_work();
  void serve(int worker);
};

void ThreadPool::Shared::drain(int worker) {
  std::int64_t left = unclaimed.load();
  while (left > 0) {
    if (!unclaimed.compare_exchange_weak(left, left - 1)) continue;
    const std::int64_t count = total;
    (*body)(count - left, worker);
    // the last one: after this addition the caller may already be in its next run, so only the mutex and
    // flags are touched
    if (finished.fetch_add(1) + 1 == count && caller_sleeps.load()) {
      std::lock_guard lock(mutex);
      done.notify_one();
    }
    left = unclaimed.load();
  }
}

void ThreadPool::Shared::sleep_until_work() {
  std::unique_lock lock(mutex);
  sleeping.fetch_add(1);
  work.wait(lock, [&] { return unclaimed.load() > 0 || stop.load(); });
  sleeping.fetch_sub(1);
}

void ThreadPool::Shared::serve(int worker) {
  while (!stop.load()) {
    if (!spin_until(kSpin, [&] { return unclaimed.load() > 0 || stop.load(); })) sleep_until_work();
    drain(worker);
  }
}

ThreadPool::ThreadPool(int threads)
    : shared_(std::make_unique<Shared>()), threads_(threads > 0 ? threads : allowed_cores()) {
  for (int worker = 1; worker < threads_; ++worker)
    shared_->threads.emplace_back([shared = shared_.get(), worker] { shared->serve(worker); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(shared_->mutex);
    shared_->stop.store(true);
  }
  shared_->work.notify_all();
  for (std::thread& thread : shared_->threads) thread.join();
}

void ThreadPool::run(std::int64_t tasks, TaskFunction body) {
  if (threads_ == 1 || tasks <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  Shared& shared = *shared_;
  shared.total = tasks;
  shared.body.emplace(body);
  shared.finished.store(0);
  shared.unclaimed.store(tasks);
  if (shared.sleeping.load() > 0) {
    std::lock_guard lock(shared.mutex);
    shared.work.notify_all();
  }
  shared.drain(0);
  if (spin_until(kSpin, [&] { return shared.finished.load() == tasks; })) return;
  shared.caller_sleeps.store(true);
  std::unique_lock lock(shared.mutex);
  shared.done.wait(lock, [&] { return shared.finished.load() == tasks; });
  shared.caller_sleeps.store(false);
}

}  // namespace danceflux::cpu
