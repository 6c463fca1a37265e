// Memory, contexts, streams, events, faults.
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <thread>

#include "tools.h"

using namespace double_test;

namespace {

bool has(const std::vector<std::string>& lines, const char* part) {
  for (const std::string& line : lines)
    if (line.find(part) != std::string::npos) return true;
  return false;
}

/// Runs the body in a child; the signal or exit status it ended with.
int in_child(const std::function<void()>& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);
    std::signal(SIGABRT, SIG_DFL);
    std::freopen("/dev/null", "w", stderr);
    body();
    _exit(0);
  }
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

TEST("device memory faults under the host's hands") {
  Session session;
  Memory memory(64);
  CHECK_EQ(in_child([&] { static_cast<volatile char*>(memory.address)[0] = 1; }), SIGSEGV);
  CHECK_EQ(in_child([&] { _exit(static_cast<volatile char*>(memory.address)[0] == 77 ? 1 : 2); }), SIGSEGV);
}

TEST("an allocation is aligned to 64 bytes and to no more, and poisoned") {
  Session session;
  for (const std::size_t bytes : {1, 31, 100, 5000}) {
    Memory memory(bytes);
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(memory.address) % 64, 0u);
    CHECK(reinterpret_cast<std::uintptr_t>(memory.address) % 128 != 0);
    std::vector<unsigned char> read(bytes);
    memory.read(read.data(), bytes);
    for (const unsigned char byte : read) CHECK(byte != 0);
  }
  void* address = nullptr;
  CHECK_EQ(call("aclrtMalloc", &address, std::size_t{0}, 0), 107000);
  CHECK_EQ(call("aclrtMalloc", &address, std::size_t{32}, 99), 107000);
}

TEST("memory runs out with 207001, and the padding counts") {
  Session session;
  With size("MEMORY_MIB", "1");
  std::size_t free = 0, total = 0;
  OK(call("aclrtGetMemInfo", 1, &free, &total));
  CHECK_EQ(total, std::size_t{1} << 20);
  const std::size_t before = free;
  Memory memory(100);
  OK(call("aclrtGetMemInfo", 1, &free, &total));
  CHECK_EQ(before - free, 128u + 32u);
  void* address = nullptr;
  CHECK_EQ(call("aclrtMalloc", &address, (std::size_t{1} << 20) - 100, 0), 207001);
  CHECK(message().find("out of memory") != std::string::npos);
}

TEST("copies beyond a block, from freed memory and of the wrong kind are refused") {
  Session session;
  char host[256] = {};
  Memory memory(100);
  CHECK_EQ(call("aclrtMemcpy", memory.address, std::size_t{256}, static_cast<const void*>(host),
                std::size_t{101}, 1),
           107000);
  CHECK(has(violations(), "reach beyond"));
  CHECK_EQ(call("aclrtMemcpy", memory.address, std::size_t{10}, static_cast<const void*>(host),
                std::size_t{11}, 1),
           100000);
  CHECK_EQ(call("aclrtMemcpy", static_cast<void*>(host), std::size_t{100},
                static_cast<const void*>(host + 128), std::size_t{100}, 2),
           107000);
  void* freed = nullptr;
  OK(call("aclrtMalloc", &freed, std::size_t{64}, 0));
  OK(call("aclrtFree", freed));
  CHECK_EQ(call("aclrtMemcpy", static_cast<void*>(host), std::size_t{64}, static_cast<const void*>(freed),
                std::size_t{64}, 2),
           107000);
  call<void>("ascend_double_clear_violations");
  CHECK_EQ(call("aclrtFree", freed), 107000);
  CHECK(has(violations(), "freed twice"));
}

TEST("a written red zone is found when the block is freed") {
  Session session;
  {
    Memory memory(40);
    std::memset(call<char*>("ascend_double_storage", static_cast<const void*>(memory.address)) + 40, 1, 1);
  }
  CHECK(has(violations(), "red zone"));
}

TEST("a thread without a device answers 107002") {
  Session session;
  int code = 0;
  std::thread([&] {
    void* address = nullptr;
    code = call("aclrtMalloc", &address, std::size_t{64}, 0);
  }).join();
  CHECK_EQ(code, 107002);
  Array x({4}, {1, 2, 3, 4}), y({4});
  std::thread([&] { code = refusal("Exp", in(x), out(y)); }).join();
  CHECK_EQ(code, 361001);
  void* context = nullptr;
  OK(call("aclrtGetCurrentContext", &context));
  std::thread([&] {
    call("aclrtSetCurrentContext", context);
    code = call("aclrtSynchronizeStream", session.stream);
  }).join();
  CHECK_EQ(code, 0);
}

TEST("streams and events of another context answer 107003") {
  Session session;
  void *mine = nullptr, *other = nullptr, *event = nullptr;
  OK(call("aclrtGetCurrentContext", &mine));
  OK(call("aclrtCreateEventExWithFlag", &event, std::uint32_t{8}));
  OK(call("aclrtCreateContext", &other, std::int32_t{0}));
  CHECK_EQ(call("aclrtSynchronizeStream", session.stream), 107003);
  CHECK_EQ(call("aclrtSynchronizeEvent", event), 107003);
  OK(call("aclrtDestroyContext", other));
  CHECK_EQ(call("aclrtSynchronizeStream", session.stream), 107002);
  OK(call("aclrtSetCurrentContext", mine));
  OK(call("aclrtDestroyEvent", event));
}

TEST("devices are counted") {
  Session session;
  OK(call("aclrtSetDevice", std::int32_t{1}));
  OK(call("aclrtSetDevice", std::int32_t{1}));
  OK(call("aclrtResetDevice", std::int32_t{1}));
  std::int32_t device = -1;
  OK(call("aclrtGetDevice", &device));
  CHECK_EQ(device, 1);
  OK(call("aclrtResetDevice", std::int32_t{1}));
  CHECK_EQ(call("aclrtGetDevice", &device), 107002);
  CHECK_EQ(call("aclrtSetDevice", std::int32_t{2}), 107001);
  OK(call("aclrtSetDevice", std::int32_t{0}));
  OK(call("aclrtResetDevice", std::int32_t{0}));
}

TEST("queued work has not run until somebody waits, and a read that does not wait is a violation") {
  Session session;
  Array x({4}, {1, 2, 3, 4}), y({4});
  std::uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  OK(size_of("Exp", &size, &executor, in(x), out(y)));
  OK(launch("Exp", nullptr, size, executor, session.stream));
  float values[4];
  y.memory.read(values, sizeof values);
  CHECK(values[0] != values[0]);
  CHECK(has(violations(), "aclrtMemcpy read memory while queued work (aclnnExp)"));
  session.synchronize();
  y.memory.read(values, sizeof values);
  CHECK_NEAR(values[0], 2.7182818, 1e-6);
}

TEST("memory that queued work needs is not freed") {
  Session session;
  {
    Array x({4}, {1, 2, 3, 4}), y({4});
    std::uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    OK(size_of("Exp", &size, &executor, in(x), out(y)));
    OK(launch("Exp", nullptr, size, executor, session.stream));
  }
  CHECK(has(violations(), "device memory was freed while queued work"));
  CHECK_EQ(call("aclrtSynchronizeStream", session.stream), 507015);
  CHECK_EQ(call("aclrtSynchronizeStream", session.stream), 507015);
}

TEST("an asynchronous copy to pinned memory arrives with the synchronisation, to pageable memory at once") {
  Session session;
  Array x({2}, {5, 6});
  float* pinned = nullptr;
  OK(call("aclrtMallocHost", reinterpret_cast<void**>(&pinned), std::size_t{8}));
  pinned[0] = 1;
  OK(call("aclrtMemcpyAsync", static_cast<void*>(pinned), std::size_t{8},
          static_cast<const void*>(x.memory.address), std::size_t{8}, 2, session.stream));
  CHECK(pinned[0] != pinned[0]);
  session.synchronize();
  CHECK_EQ(pinned[1], 6.0f);
  float pageable[2] = {};
  OK(call("aclrtMemcpyAsync", static_cast<void*>(pageable), std::size_t{8},
          static_cast<const void*>(x.memory.address), std::size_t{8}, 2, session.stream));
  CHECK_EQ(pageable[1], 6.0f);
  CHECK_EQ(call("aclrtMemcpyAsync", static_cast<void*>(pageable), std::size_t{8},
                static_cast<const void*>(pinned), std::size_t{8}, 0, session.stream),
           207000);
  OK(call("aclrtFreeHost", static_cast<void*>(pinned)));
}

TEST("aclrtMemset does not wait for streams, aclrtMemsetAsync does") {
  Session session;
  Array x({2}, {5, 6});
  OK(call("aclrtMemsetAsync", x.memory.address, std::size_t{8}, std::int32_t{0}, std::size_t{8},
          session.stream));
  OK(call("aclrtMemset", x.memory.address, std::size_t{8}, std::int32_t{0x40}, std::size_t{8}));
  CHECK(has(violations(), "aclrtMemset wrote memory while queued work"));
  session.synchronize();
  CHECK_EQ(x.values()[0], 0.0);
}

TEST("events: kinds, states, and streams that wait for each other") {
  Session session;
  void *plain = nullptr, *timed = nullptr, *ex = nullptr;
  OK(call("aclrtCreateEventWithFlag", &timed, std::uint32_t{8}));
  OK(call("aclrtCreateEventExWithFlag", &ex, std::uint32_t{1 | 8}));
  OK(call("aclrtCreateEvent", &plain));
  CHECK_EQ(call("aclrtStreamWaitEvent", session.stream, timed), 107000);
  int status = -1;
  OK(call("aclrtQueryEventStatus", ex, &status));
  CHECK_EQ(status, 1);
  CHECK_EQ(call("aclrtResetEvent", ex, session.stream), 107000);
  CHECK(has(violations(), "aclrtResetEvent"));
  void* second = nullptr;
  OK(call("aclrtCreateStream", &second));
  Array x({1}, std::vector<double>{1});
  OK(call("aclrtMemsetAsync", x.memory.address, std::size_t{4}, std::int32_t{0}, std::size_t{4},
          session.stream));
  OK(call("aclrtRecordEvent", ex, session.stream));
  OK(call("aclrtQueryEventStatus", ex, &status));
  CHECK_EQ(status, 0);
  OK(call("aclrtStreamWaitEvent", second, ex));
  OK(call("aclrtSynchronizeStream", second));
  OK(call("aclrtQueryEventStatus", ex, &status));
  CHECK_EQ(status, 1);
  OK(call("aclrtQueryEvent", ex, &status));
  CHECK_EQ(status, 0);
  CHECK_EQ(x.values()[0], 0.0);
  OK(call("aclrtRecordEvent", ex, second));
  OK(call("aclrtSynchronizeEvent", ex));
  OK(call("aclrtDestroyStream", second));
  for (void* event : {plain, timed, ex}) OK(call("aclrtDestroyEvent", event));
  CHECK_EQ(call("aclrtDestroyEvent", ex), 107000);
}

TEST("a synchronisation with a limit answers 507046") {
  Session session;
  With delay("DELAY_US", "400000");
  Array x({1}, std::vector<double>{1});
  int code = 0;
  for (int i = 0; i < 8; ++i)
    OK(call("aclrtMemsetAsync", x.memory.address, std::size_t{4}, std::int32_t{0}, std::size_t{4},
            session.stream));
  code = call("aclrtSynchronizeStreamWithTimeout", session.stream, std::int32_t{1});
  CHECK_EQ(code, 507046);
  session.synchronize();
}

TEST("a fault is answered at the nth call and then never again") {
  Session session;
  call<void>("ascend_double_set_fault", "aclrtMalloc", std::uint64_t{2}, 207001);
  void *first = nullptr, *second = nullptr;
  OK(call("aclrtMalloc", &first, std::size_t{64}, 0));
  CHECK_EQ(call("aclrtMalloc", &second, std::size_t{64}, 0), 207001);
  CHECK(message().find("injected") != std::string::npos);
  OK(call("aclrtMalloc", &second, std::size_t{64}, 0));
  CHECK_EQ(call<std::size_t>("ascend_double_faults_left"), 0u);
  OK(call("aclrtFree", first));
  OK(call("aclrtFree", second));
  call<void>("ascend_double_set_fault", "aclCreateScalar", std::uint64_t{1}, 1);
  float value = 1;
  CHECK((call<aclScalar*, void*, int>("aclCreateScalar", &value, 0) == nullptr));
}

TEST("a device fault comes with the synchronisation, and stops what is behind it where asked to") {
  for (const std::uint64_t mode : {0, 1}) {
    Session session;
    OK(call("aclrtSetStreamFailureMode", session.stream, mode));
    Array x({1}, std::vector<double>{1}), y({1}, std::vector<double>{9});
    call<void>("ascend_double_set_fault", "aclnnExp", std::uint64_t{1}, 507015);
    std::uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    OK(size_of("Exp", &size, &executor, in(x), out(y)));
    OK(launch("Exp", nullptr, size, executor, session.stream));
    OK(call("aclrtMemsetAsync", y.memory.address, std::size_t{4}, std::int32_t{0}, std::size_t{4},
            session.stream));
    CHECK_EQ(call("aclrtSynchronizeStream", session.stream), 507015);
    CHECK(message().find("aclnnExp") != std::string::npos);
    CHECK_EQ(y.values()[0], mode ? 9.0 : 0.0);
  }
}

TEST("the last error's text is the thread's own and gone once read") {
  Session session;
  CHECK_EQ(call("aclrtSetDevice", std::int32_t{99}), 107001);
  std::thread([] { CHECK(message().empty()); }).join();
  CHECK(message().find("99") != std::string::npos);
  CHECK(message().empty());
  CHECK_EQ(call("aclrtPeekAtLastError", 0), 107001);
  CHECK_EQ(call("aclrtGetLastError", 0), 107001);
  CHECK_EQ(call("aclrtGetLastError", 0), 0);
}

TEST("options: two scopes, and the context's is not there until it is set") {
  Session session;
  void *own = nullptr, *fresh = nullptr;
  OK(call("aclrtGetCurrentContext", &own));
  OK(call("aclrtCreateContext", &fresh, std::int32_t{0}));
  std::int64_t value = -1;
  CHECK_EQ(call("aclrtCtxGetSysParamOpt", 0, &value), 100000);
  OK(call("aclrtGetSysParamOpt", 0, &value));
  CHECK_EQ(value, 0);
  OK(call("aclrtCtxSetSysParamOpt", 0, std::int64_t{1}));
  OK(call("aclrtCtxGetSysParamOpt", 0, &value));
  CHECK_EQ(value, 1);
  CHECK_EQ(call("aclrtSetSysParamOpt", 0, std::int64_t{2}), layout()[0] == '9' ? 0 : 100000);
  OK(call("aclrtSetSysParamOpt", 0, std::int64_t{0}));
  OK(call("aclrtDestroyContext", fresh));
  OK(call("aclrtSetCurrentContext", own));
}

TEST("initialisation is once, and a report tells calls and leaks") {
  const int again = call<int, const char*>("aclInit", nullptr);
  CHECK(again == 0 || again == 100002);
  CHECK_EQ((call<int, const char*>("aclInit", nullptr)), 100002);
  Session session;
  Memory memory(64);
  const std::string path = "/tmp/ascend_double_report_" + std::to_string(getpid());
  CHECK(call<std::size_t>("ascend_double_leaks") >= 2);
  call<void>("ascend_double_report", path.c_str());
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  unlink(path.c_str());
  CHECK(text.find("aclrtMalloc ") != std::string::npos);
  CHECK(text.find("leak: ") != std::string::npos && text.find("device memory") != std::string::npos);
}

TEST("a violation ends the process where asked to") {
  Session session;
  With abort("ABORT", "1");
  CHECK_EQ(in_child([] {
             call("aclrtDestroyEvent", reinterpret_cast<void*>(0x40));
             call<int, const aclTensor*>("aclDestroyTensor", reinterpret_cast<const aclTensor*>(0x40));
           }),
           SIGABRT);
}

TEST("another thread serves the callbacks of a stream") {
  Session session;
  void* context = nullptr;
  OK(call("aclrtGetCurrentContext", &context));
  std::atomic<bool> stop{false};
  std::thread server([&] {
    call("aclrtSetCurrentContext", context);
    while (!stop) call("aclrtProcessReport", std::int32_t{10});
  });
  OK(call("aclrtSubscribeReport", static_cast<std::uint64_t>(server.native_handle()), session.stream));
  int called = 0;
  OK(call(
      "aclrtLaunchCallback", +[](void* at) { ++*static_cast<int*>(at); }, static_cast<void*>(&called), 1,
      session.stream));
  session.synchronize();
  CHECK_EQ(called, 1);
  stop = true;
  server.join();
}
