// The libraries of one layout, opened as a plugin would: by name, every function looked up where it should
// be.
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "ascend_double/cann.h"
#include "harness.h"

namespace double_test {

using Shape = std::vector<std::int64_t>;

/// "8.1" or "9.0" (ASCEND_DOUBLE_LAYOUT).
std::string layout();
/// In any library of the layout; NULL where none has it.
void* find(const std::string& name);
/// In one library; NULL where it does not have it, or where the layout has no such library.
void* find_in(const std::string& library, const std::string& name);

/// Calls a function of the ABI with exactly the argument types given.
template <class Result = int, class... Args>
Result call(const char* name, Args... args) {
  void* address = find(name);
  if (!address) danceflux::test::fail_at(__FILE__, __LINE__, name, " is missing");
  return reinterpret_cast<Result (*)(Args...)>(address)(args...);
}

#define OK(...) CHECK_EQ((__VA_ARGS__), 0)

/// What aclGetRecentErrMsg says now.
std::string message();
std::vector<std::string> violations();
/// Sets ASCEND_DOUBLE_<name> until the end of the scope.
class With {
 public:
  With(const char* name, const char* value);
  ~With();
  With(const With&) = delete;

 private:
  const char* name_;
};

/// Device 0, one stream, both determinism options off, no faults, no violations; gives everything back at its
/// end.
class Session {
 public:
  Session();
  ~Session();
  Session(const Session&) = delete;
  void synchronize() const;
  void deterministic(bool on) const;
  aclrtStream stream = nullptr;
};

/// Device memory that frees itself.
class Memory {
 public:
  explicit Memory(std::size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory(Memory&& other) noexcept : address(std::exchange(other.address, nullptr)), bytes(other.bytes) {}
  void write(const void* host, std::size_t count) const;
  void read(void* host, std::size_t count) const;
  void* address;
  std::size_t bytes;
};

/// A tensor with memory of its own, read and written as doubles.
class Array {
 public:
  Array(Shape shape, int dtype = ACL_FLOAT, int format = ACL_FORMAT_ND);
  Array(Shape shape, const std::vector<double>& values, int dtype = ACL_FLOAT, int format = ACL_FORMAT_ND);
  ~Array();
  Array(const Array&) = delete;
  Array(Array&& other) noexcept;

  /// What is in memory, converted; synchronises nothing.
  std::vector<double> values() const;
  void set(const std::vector<double>& values) const;
  /// A view with other sizes and strides; lives as long as this.
  const aclTensor* view(const Shape& shape, const Shape& strides, std::int64_t offset = 0);
  const aclTensor* transposed();
  operator aclTensor*() const { return tensor_; }

  const Shape shape;
  const int dtype;
  const int format;
  Memory memory;

 private:
  aclTensor* tensor_ = nullptr;
  std::vector<aclTensor*> views_;
};

aclTensor* describe(const Shape& shape, int dtype, void* data, int format = ACL_FORMAT_ND);

/// A host object of aclnn that destroys itself.
template <class Handle>
class Owned {
 public:
  Owned(Handle* made, const char* destroyer) : handle_(made), destroyer_(destroyer) {}
  ~Owned() { call<int, const Handle*>(destroyer_, handle_); }
  Owned(const Owned&) = delete;
  operator Handle*() const { return handle_; }

 private:
  Handle* handle_;
  const char* destroyer_;
};
Owned<aclScalar> scalar(float value);
Owned<aclIntArray> ints(const Shape& values);
Owned<aclBoolArray> bools(std::initializer_list<bool> values);

/// Phase 1.
template <class... Args>
int size_of(const std::string& op, std::uint64_t* workspace, aclOpExecutor** executor, Args... args) {
  return call<int, Args..., std::uint64_t*, aclOpExecutor**>(("aclnn" + op + "GetWorkspaceSize").c_str(),
                                                             args..., workspace, executor);
}
inline int launch(const std::string& op, void* workspace, std::uint64_t size, aclOpExecutor* executor,
                  aclrtStream stream) {
  return call<int>(("aclnn" + op).c_str(), workspace, size, executor, stream);
}

/// Phase 1 only; the executor is given back. What it answered.
template <class... Args>
int refusal(const std::string& op, Args... args) {
  std::uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const int code = size_of(op, &size, &executor, args...);
  if (code == 0) call<int>("aclDestroyAclOpExecutor", executor);
  return code;
}

/// Both phases and a synchronisation.
template <class... Args>
void run(const Session& session, const std::string& op, Args... args) {
  std::uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const int code = size_of(op, &size, &executor, args...);
  if (code) danceflux::test::fail_at(__FILE__, __LINE__, op, " answered ", code, ": ", message());
  Memory workspace(size ? size : 32);
  OK(launch(op, size ? workspace.address : nullptr, size, executor, session.stream));
  session.synchronize();
}

/// A tensor as tests pass it.
inline const aclTensor* in(const Array& array) { return array; }
inline aclTensor* out(const Array& array) { return array; }

/// Reproducible numbers in [low, high).
std::vector<double> numbers(std::int64_t count, std::uint64_t seed, double low = -1, double high = 1);
/// What a number is after rounding to a dtype.
double rounded(double value, int dtype);
std::vector<double> rounded(std::vector<double> values, int dtype);
/// Largest |got - wanted| / max(1, |wanted|).
double worst(const std::vector<double>& got, const std::vector<double>& wanted);

/// Runs this program again for the tests whose names contain `filter`, with more environment.
int start(const std::string& filter, const std::vector<std::pair<std::string, std::string>>& environment);
/// Waits for a process; its exit status.
int finish(int process);
int rerun(const std::string& filter, const std::vector<std::pair<std::string, std::string>>& environment);

}  // namespace double_test
