#include "ascend_double/runtime/core.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>

#include "ascend_double/runtime/report.h"

namespace ascend_double {
namespace {

std::string formatted(const char* format, std::va_list arguments) {
  std::va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, format, arguments);
  std::string text(static_cast<std::size_t>(length), '\0');
  std::vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  return text;
}

struct LastError {
  std::string pending;  // not read yet
  std::string handed;   // what the last aclGetRecentErrMsg pointed to
  int code = 0;
};
thread_local LastError last_error;
thread_local int held_fault = 0;

// Leaked on purpose: threads of streams may still ask while the process ends.
struct Settings {
  std::mutex mutex;
  std::map<std::string, std::string> given;
};
Settings& settings() {
  static Settings& all = *new Settings;
  return all;
}

std::atomic<int> opened_layout{0};

// Whether a device error may come after the call has done its part: of what it queues, or of what it waits
// for.
bool outlives_call(const std::string& name) {
  static const std::set<std::string>& late = *new std::set<std::string>{"aclrtMemcpyAsync",
                                                                        "aclrtMemsetAsync",
                                                                        "aclrtRecordEvent",
                                                                        "aclrtStreamWaitEvent",
                                                                        "aclrtLaunchCallback",
                                                                        "aclrtLaunchHostFunc",
                                                                        "HcclAllReduce",
                                                                        "HcclReduceScatter",
                                                                        "HcclAllGather",
                                                                        "HcclBroadcast",
                                                                        "HcclReduce",
                                                                        "HcclScatter",
                                                                        "HcclSend",
                                                                        "HcclRecv",
                                                                        "HcclBarrier"};
  const std::string plan = "GetWorkspaceSize";
  const bool plans =
      name.size() > plan.size() && name.compare(name.size() - plan.size(), plan.size(), plan) == 0;
  return late.count(name) || name.rfind("aclrtSynchronize", 0) == 0 ||
         (name.rfind("aclnn", 0) == 0 && !plans);
}

}  // namespace

std::string text_of(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::string text = formatted(format, arguments);
  va_end(arguments);
  return text;
}

void refuse(int code, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::string text = formatted(format, arguments);
  va_end(arguments);
  throw Refusal{code, std::move(text)};
}

void violation(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::string text = formatted(format, arguments);
  va_end(arguments);
  report().violations.add(text);
  if (setting("ABORT", std::int64_t{0})) {
    std::fprintf(stderr, "ascend_double: violation: %s\n", text.c_str());
    std::abort();
  }
}

std::string setting(const char* name, const char* otherwise) {
  {
    const std::scoped_lock lock(settings().mutex);
    const auto found = settings().given.find(name);
    if (found != settings().given.end()) return found->second;
  }
  const char* value = std::getenv((std::string("ASCEND_DOUBLE_") + name).c_str());
  return value ? value : otherwise;
}

std::int64_t setting(const char* name, std::int64_t otherwise) {
  const std::string value = setting(name, "");
  return value.empty() ? otherwise : std::strtoll(value.c_str(), nullptr, 10);
}

std::vector<Function>& functions() {
  static std::vector<Function>& all = *new std::vector<Function>;
  return all;
}

int enter(const char* name) {
  held_fault = 0;
  const int fault = report().count(name);
  if (fault >= 507000 && fault < 508000 && outlives_call(name)) {
    held_fault = fault;
    return 0;
  }
  return fault;
}

int leave() { return take_held_fault(); }

int take_held_fault() {
  const int fault = held_fault;
  held_fault = 0;
  return fault;
}

void remember_error(int code, const std::string& text) {
  last_error.pending = text;
  last_error.code = code;
}

const Soc& soc() {
  // Read once per name: a test may change it between two runs.
  static std::mutex mutex;
  static std::map<std::string, Soc>& known = *new std::map<std::string, Soc>;
  const std::string name = setting("SOC", "Ascend910B1");
  const auto starts = [&](const char* prefix) { return name.rfind(prefix, 0) == 0; };
  const std::scoped_lock lock(mutex);
  const auto found = known.find(name);
  if (found != known.end()) return found->second;
  int generation = 1;  // a plain Ascend910B, too
  if (starts("Ascend910_93")) generation = 3;
  if (starts("Ascend910B") && name.size() > 10 && name[10] >= '1' && name[10] <= '4') generation = 2;
  if (starts("Ascend950")) generation = 950;
  if (starts("Ascend310")) generation = 310;
  return known.emplace(name, Soc{name, generation}).first->second;
}

int layout() {
  const int opened = opened_layout;
  return opened ? opened : 8;
}

std::uint64_t random_bits() {
  static std::atomic<std::uint64_t> state{0};
  std::uint64_t seed = state.fetch_add(1) * 0x9e3779b97f4a7c15ULL +
                       static_cast<std::uint64_t>(setting("SEED", std::int64_t{1}));
  seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9ULL;
  seed = (seed ^ (seed >> 27)) * 0x94d049bb133111ebULL;
  return seed ^ (seed >> 31);
}

}  // namespace ascend_double

using namespace ascend_double;

// Not behind the door: it cannot fail, and reading it must not hide the error that it tells.
static const char* recent_error_message() {
  if (last_error.pending.empty()) return nullptr;
  last_error.handed = std::move(last_error.pending);
  last_error.pending.clear();
  return last_error.handed.c_str();
}
static int last_error_code(int) {
  const int code = last_error.code;
  last_error.code = 0;
  return code;
}
static int peek_at_last_error(int) { return last_error.code; }

static const Register entry_message(Library::acl, always, "aclGetRecentErrMsg",
                                    reinterpret_cast<void*>(&recent_error_message));
static const Register entry_last(Library::acl, always, "aclrtGetLastError",
                                 reinterpret_cast<void*>(&last_error_code));
static const Register entry_peek(Library::acl, always, "aclrtPeekAtLastError",
                                 reinterpret_cast<void*>(&peek_at_last_error));

// ---- control: for tests in the same process, found by dlsym in any of the libraries
// -----------------------------------------
extern "C" {

/// Sets ASCEND_DOUBLE_<name> for this process from now on; NULL gives it back to the environment.
__attribute__((visibility("default"))) void ascend_double_set(const char* name, const char* value) {
  const std::scoped_lock lock(settings().mutex);
  if (value)
    settings().given[name] = value;
  else
    settings().given.erase(name);
}

/// Called by the libraries of a layout when they are opened.
__attribute__((visibility("default"))) void ascend_double_opened(int version) {
  int none = 0;
  if (!opened_layout.compare_exchange_strong(none, version) && none != version)
    violation("libraries of two layouts (%d and %d) in one process", none, version);
}

/// What dlsym finds: NULL for what this layout lacks or ASCEND_DOUBLE_MISSING names.
__attribute__((visibility("default"))) void* ascend_double_resolve(const char* name) {
  const std::string missing = "," + setting("MISSING", "") + ",";
  std::string base = name;
  if (missing.find("," + base + ",") != std::string::npos) return nullptr;
  const std::string suffix = "GetWorkspaceSize";
  if (base.size() > suffix.size() && base.compare(base.size() - suffix.size(), suffix.size(), suffix) == 0 &&
      missing.find("," + base.substr(0, base.size() - suffix.size()) + ",") != std::string::npos)
    return nullptr;
  for (const Function& function : functions())
    if (function.name == name) return function.since > layout() ? nullptr : function.address;
  return nullptr;
}
}

/// The table of functions, for the program that writes the libraries of the layouts.
extern "C" __attribute__((visibility("default"))) std::size_t ascend_double_functions(const void** first) {
  *first = functions().data();
  return functions().size();
}
