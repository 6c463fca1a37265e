// Which objects are alive, by kind; the last dead ones are remembered, so that a stale handle is told from a
// wild one.
#pragma once
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ascend_double/runtime/core.h"

namespace ascend_double {

/// Something that can count what is alive of its kind.
class LiveCount {
 public:
  explicit LiveCount(const char* kind);
  virtual ~LiveCount() = default;
  virtual std::size_t size() = 0;
  /// A line about some of what is alive, for the leak report.
  virtual std::string example() { return {}; }
  const char* const kind;
};

std::size_t live(const std::string& kind);
/// Adds a line to the leaks for each kind of which something is alive.
void note_leaks();

/// The handles of one kind that were given out. A dead object is kept until kGraves more have died: its
/// address is not given out again meanwhile, so that using or destroying it twice is seen.
template <class Object>
class Handles final : public LiveCount {
 public:
  explicit Handles(const char* name) : LiveCount(name) {}

  Object* add(Object* object) {
    const std::scoped_lock lock(mutex_);
    alive_.insert(object);
    return object;
  }
  bool alive(const void* handle) {
    const std::scoped_lock lock(mutex_);
    return alive_.count(static_cast<Object*>(const_cast<void*>(handle))) > 0;
  }
  /// The object of a handle, or a refusal with `code`. A handle of a dead object is a violation as well.
  Object& get(const void* handle, int code, int null_code) {
    if (!handle) refuse(null_code, "expected a %s, got NULL", kind);
    const std::scoped_lock lock(mutex_);
    Object* object = static_cast<Object*>(const_cast<void*>(handle));
    if (alive_.count(object)) return *object;
    const bool dead = dead_.count(object) > 0;
    if (dead) violation("a %s was used after it was destroyed", kind);
    refuse(code, "expected a %s, got %s", kind, dead ? "one that was destroyed" : "a wild pointer");
  }
  /// Takes the object out; false where it was not alive, which is a violation.
  bool remove(const void* handle) {
    const std::scoped_lock lock(mutex_);
    Object* object = static_cast<Object*>(const_cast<void*>(handle));
    if (!alive_.erase(object)) {
      violation("a %s was destroyed %s", kind, dead_.count(object) ? "twice" : "that never was one");
      return false;
    }
    dead_.insert(object);
    graves_.push_back(object);
    if (graves_.size() > kGraves) {
      dead_.erase(graves_.front());
      delete graves_.front();
      graves_.pop_front();
    }
    return true;
  }
  std::size_t size() override {
    const std::scoped_lock lock(mutex_);
    return alive_.size();
  }
  void each(const std::function<void(Object&)>& visit) {
    const std::scoped_lock lock(mutex_);
    for (Object* object : alive_) visit(*object);
  }

 private:
  static constexpr std::size_t kGraves = 1024;
  std::mutex mutex_;
  std::unordered_set<Object*> alive_, dead_;
  std::deque<Object*> graves_;
};

}  // namespace ascend_double
