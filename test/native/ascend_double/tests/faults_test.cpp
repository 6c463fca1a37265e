// Every call that a small program makes fails once; the program hears of it and leaves nothing behind.
#include <map>

#include "tools.h"

using namespace double_test;

namespace {

const char* const kCalls[] = {"aclrtCreateStream", "aclrtMalloc",      "aclrtMemcpy",
                              "aclCreateTensor",   "aclCreateScalar",  "aclnnAddsGetWorkspaceSize",
                              "aclnnAdds",         "aclrtMemcpyAsync", "aclrtSynchronizeStream",
                              "aclrtMallocHost"};

/// x + 1 on the device; what a careful plugin does: every code is looked at, everything is given back. The
/// first bad code.
int small_program(float* result) {
  void *stream = nullptr, *x = nullptr, *y = nullptr, *pinned = nullptr;
  aclTensor *tx = nullptr, *ty = nullptr;
  aclScalar* one = nullptr;
  aclOpExecutor* executor = nullptr;
  int code = 0;
  const auto fine = [&](int answer) { return (code = code ? code : answer) == 0; };
  const float input = 41, step = 1;
  float plus = step;
  if (fine(call("aclrtCreateStream", &stream)) && fine(call("aclrtMalloc", &x, std::size_t{4}, 0)) &&
      fine(call("aclrtMalloc", &y, std::size_t{4}, 0)) &&
      fine(call("aclrtMallocHost", &pinned, std::size_t{4})) &&
      fine(call("aclrtMemcpy", x, std::size_t{4}, static_cast<const void*>(&input), std::size_t{4}, 1)) &&
      fine((tx = describe({1}, ACL_FLOAT, x)) ? 0 : 1) && fine((ty = describe({1}, ACL_FLOAT, y)) ? 0 : 1) &&
      fine((one = call<aclScalar*, void*, int>("aclCreateScalar", &plus, ACL_FLOAT)) ? 0 : 1)) {
    std::uint64_t size = 0;
    if (fine(size_of("Adds", &size, &executor, static_cast<const aclTensor*>(tx),
                     static_cast<const aclScalar*>(one), static_cast<const aclScalar*>(one), ty))) {
      if (!fine(launch("Adds", nullptr, size, executor, stream))) call("aclDestroyAclOpExecutor", executor);
      fine(call("aclrtMemcpyAsync", pinned, std::size_t{4}, static_cast<const void*>(y), std::size_t{4}, 2,
                stream));
      fine(call("aclrtSynchronizeStream", stream));
      *result = *static_cast<float*>(pinned);
    }
  }
  call<int, const aclScalar*>("aclDestroyScalar", one);
  for (const aclTensor* tensor : {tx, ty}) call("aclDestroyTensor", tensor);
  if (stream) call("aclrtDestroyStream", stream);
  for (void* memory : {x, y})
    if (memory) call("aclrtFree", memory);
  if (pinned) call("aclrtFreeHost", pinned);
  return code;
}

std::map<std::string, std::size_t> everything_alive() {
  std::map<std::string, std::size_t> alive;
  for (const char* kind :
       {"tensor", "scalar", "executor", "stream", "event", "context", "device memory", "host memory"})
    alive[kind] = call<std::size_t>("ascend_double_live", kind);
  return alive;
}

}  // namespace

TEST("every call of a small program can fail, once, and is heard") {
  Session session;
  float result = 0;
  call<void>("ascend_double_reset_calls");
  OK(small_program(&result));
  CHECK_EQ(result, 42.0f);
  std::map<std::string, std::uint64_t> counts;
  for (const char* name : kCalls) counts[name] = call<std::uint64_t>("ascend_double_calls", name);
  const auto alive = everything_alive();
  for (const auto& [name, count] : counts) {
    CHECK(count > 0);
    for (std::uint64_t nth = 1; nth <= count; ++nth)
      for (const int code : {207001, 507015, 507010}) {
        call<void>("ascend_double_set_fault", name.c_str(), nth, code);
        const int answer = small_program(&result);
        if (answer == 0 || call<std::size_t>("ascend_double_faults_left") != 0 || everything_alive() != alive)
          danceflux::test::fail_at(__FILE__, __LINE__, name, " call ", nth, " with ", code, " answered ",
                                   answer);
      }
  }
  OK(small_program(&result));
  CHECK_EQ(violations().size(), 0u);
}
