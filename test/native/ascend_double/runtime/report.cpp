#include "ascend_double/runtime/report.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "ascend_double/runtime/core.h"
#include "ascend_double/runtime/live.h"

namespace ascend_double {

void Lines::add(std::string line) {
  const std::scoped_lock lock(mutex_);
  lines_.push_back(new std::string(std::move(line)));
}

std::size_t Lines::size() {
  const std::scoped_lock lock(mutex_);
  return lines_.size();
}

const char* Lines::at(std::size_t index) {
  const std::scoped_lock lock(mutex_);
  return index < lines_.size() ? lines_[index]->c_str() : nullptr;
}

std::vector<std::string> Lines::all() {
  const std::scoped_lock lock(mutex_);
  std::vector<std::string> copy;
  for (const std::string* line : lines_) copy.push_back(*line);
  return copy;
}

void Lines::clear() {
  const std::scoped_lock lock(mutex_);
  for (const std::string* line : lines_) delete line;
  lines_.clear();
}

Report& report() {
  static Report& only = *new Report;
  return only;
}

// ASCEND_DOUBLE_FAULT=name:n:code[,name:n:code...]
void Report::read_environment() {
  read_ = true;
  std::istringstream list(setting("FAULT", ""));
  for (std::string item; std::getline(list, item, ',');) {
    const std::size_t second = item.rfind(':'), first = item.rfind(':', second - 1);
    if (second == std::string::npos || first == std::string::npos || first == second) continue;
    faults_.push_back({item.substr(0, first), std::strtoull(item.c_str() + first + 1, nullptr, 10),
                       std::atoi(item.c_str() + second + 1)});
  }
}

int Report::count(const char* name) {
  const std::scoped_lock lock(mutex_);
  if (!read_) read_environment();
  ++calls_[name];
  for (auto fault = faults_.begin(); fault != faults_.end(); ++fault) {
    if (fault->name != "*" && fault->name != name) continue;
    if (--fault->left > 0) continue;
    const int code = fault->code;
    faults_.erase(fault);
    return code;
  }
  return 0;
}

std::uint64_t Report::calls(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  const auto found = calls_.find(name);
  return found == calls_.end() ? 0 : found->second;
}

void Report::reset_calls() {
  const std::scoped_lock lock(mutex_);
  calls_.clear();
}

void Report::add_fault(const std::string& name, std::uint64_t nth, int code) {
  const std::scoped_lock lock(mutex_);
  if (!read_) read_environment();
  faults_.push_back({name, nth, code});
}

void Report::clear_faults() {
  const std::scoped_lock lock(mutex_);
  read_ = true;
  faults_.clear();
}

std::size_t Report::faults_left() {
  const std::scoped_lock lock(mutex_);
  if (!read_) read_environment();
  return faults_.size();
}

void Report::write(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (!file) return;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& [name, calls] : calls_)
      std::fprintf(file, "%s %llu\n", name.c_str(), static_cast<unsigned long long>(calls));
  }
  for (const std::string& line : violations.all()) std::fprintf(file, "violation: %s\n", line.c_str());
  for (const std::string& line : leaks.all()) std::fprintf(file, "leak: %s\n", line.c_str());
  std::fclose(file);
}

namespace {

// The last of all: what is still alive when the process ends was never given back.
struct AtExit {
  ~AtExit() {
    std::string path = setting("REPORT", "");
    if (path.empty()) return;
    const std::size_t pid = path.find("%p");
    if (pid != std::string::npos) path.replace(pid, 2, std::to_string(getpid()));
    note_leaks();
    report().write(path);
  }
} at_exit;

}  // namespace
}  // namespace ascend_double

using namespace ascend_double;
#define CONTROL __attribute__((visibility("default")))
extern "C" {
CONTROL std::size_t ascend_double_violations() { return report().violations.size(); }
CONTROL const char* ascend_double_violation(std::size_t index) { return report().violations.at(index); }
CONTROL void ascend_double_clear_violations() { report().violations.clear(); }
CONTROL std::uint64_t ascend_double_calls(const char* name) { return report().calls(name); }
CONTROL void ascend_double_reset_calls() { report().reset_calls(); }
CONTROL void ascend_double_set_fault(const char* name, std::uint64_t nth, int code) {
  report().add_fault(name, nth, code);
}
CONTROL void ascend_double_clear_faults() { report().clear_faults(); }
CONTROL std::size_t ascend_double_faults_left() { return report().faults_left(); }
CONTROL void ascend_double_report(const char* path) { report().write(path); }
/// How much of a kind is alive: "tensor", "scalar", "array", "list", "executor", "stream", "event",
/// "context", "device memory", "host memory", "communicator".
CONTROL std::size_t ascend_double_live(const char* kind) { return live(kind); }
}
