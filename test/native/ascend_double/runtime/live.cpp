#include "ascend_double/runtime/live.h"

#include "ascend_double/runtime/report.h"

namespace ascend_double {
namespace {

std::vector<LiveCount*>& kinds() {
  static std::vector<LiveCount*>& all = *new std::vector<LiveCount*>;
  return all;
}
std::mutex& kinds_mutex() {
  static std::mutex& mutex = *new std::mutex;
  return mutex;
}

}  // namespace

LiveCount::LiveCount(const char* name) : kind(name) {
  const std::scoped_lock lock(kinds_mutex());
  kinds().push_back(this);
}

std::size_t live(const std::string& kind) {
  const std::scoped_lock lock(kinds_mutex());
  std::size_t total = 0;
  for (LiveCount* count : kinds())
    if (kind == count->kind) total += count->size();
  return total;
}

void note_leaks() {
  const std::scoped_lock lock(kinds_mutex());
  for (LiveCount* count : kinds())
    if (const std::size_t size = count->size())
      report().leaks.add(
          text_of("%zu %s%s%s", size, count->kind, size > 1 ? "s" : "", count->example().c_str()));
}

}  // namespace ascend_double

extern "C" {
/// Notes what is alive now and tells how many lines that gave; ascend_double_leak reads them.
__attribute__((visibility("default"))) std::size_t ascend_double_leaks() {
  ascend_double::report().leaks.clear();
  ascend_double::note_leaks();
  return ascend_double::report().leaks.size();
}
__attribute__((visibility("default"))) const char* ascend_double_leak(std::size_t index) {
  return ascend_double::report().leaks.at(index);
}
}
