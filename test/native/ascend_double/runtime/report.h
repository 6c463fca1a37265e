// Calls counted, faults injected, violations and leaks kept.
#pragma once
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace ascend_double {

/// A list of lines that several threads write.
class Lines {
 public:
  void add(std::string line);
  std::size_t size();
  /// NULL past the end. The pointer stays good until clear().
  const char* at(std::size_t index);
  std::vector<std::string> all();
  void clear();

 private:
  std::mutex mutex_;
  std::vector<std::string*> lines_;
};

class Report {
 public:
  Lines violations;
  Lines leaks;

  /// Counts a call of `name`; the code of a fault that is due at this call, or 0.
  int count(const char* name);
  std::uint64_t calls(const std::string& name);
  void reset_calls();
  /// The nth call of `name` from now on ("*": of anything) answers `code`, once.
  void add_fault(const std::string& name, std::uint64_t nth, int code);
  void clear_faults();
  std::size_t faults_left();
  /// "name calls" lines, then "violation: ..." and "leak: ..." lines.
  void write(const std::string& path);

 private:
  struct Fault {
    std::string name;
    std::uint64_t left;
    int code;
  };
  void read_environment();

  std::mutex mutex_;
  bool read_ = false;
  std::map<std::string, std::uint64_t> calls_;
  std::vector<Fault> faults_;
};

Report& report();

}  // namespace ascend_double
