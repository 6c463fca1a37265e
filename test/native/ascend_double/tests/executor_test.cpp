// The life of executors and of the host objects.
#include "tools.h"

using namespace double_test;

namespace {

bool has(const std::vector<std::string>& lines, const char* part) {
  for (const std::string& line : lines)
    if (line.find(part) != std::string::npos) return true;
  return false;
}

aclOpExecutor* planned(const char* op, const aclTensor* x, aclTensor* y) {
  std::uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  OK(size_of(op, &size, &executor, x, y));
  return executor;
}

}  // namespace

TEST("phase 2 consumes its executor") {
  Session session;
  Array x({3}, {1, 2, 3}), y({3});
  aclOpExecutor* executor = planned("Exp", x, y);
  OK(launch("Exp", nullptr, 0, executor, session.stream));
  CHECK_EQ(launch("Exp", nullptr, 0, executor, session.stream), 561000);
  CHECK(has(violations(), "executor was used after it was destroyed"));
  CHECK_EQ(launch("Exp", nullptr, 0, nullptr, session.stream), 561103);
  session.synchronize();
}

TEST("an executor of another op is refused") {
  Session session;
  Array x({3}, {1, 2, 3}), y({3});
  aclOpExecutor* executor = planned("Exp", x, y);
  CHECK_EQ(launch("Tanh", nullptr, 0, executor, session.stream), 561000);
  CHECK(has(violations(), "aclnnTanh was run with an executor of aclnnExp"));
  OK(call("aclDestroyAclOpExecutor", executor));
}

TEST("an executor that never ran is a leak") {
  Session session;
  Array x({3}, {1, 2, 3}), y({3});
  const std::size_t before = call<std::size_t>("ascend_double_live", "executor");
  aclOpExecutor* executor = planned("Exp", x, y);
  CHECK_EQ(call<std::size_t>("ascend_double_live", "executor"), before + 1);
  OK(call("aclDestroyAclOpExecutor", executor));
  CHECK_EQ(call<std::size_t>("ascend_double_live", "executor"), before);
}

TEST("a workspace must be as large as phase 1 said, and on the device") {
  Session session;
  Array a({4, 4}, numbers(16, 1)), c({4, 4});
  std::uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  OK(size_of("Mm", &size, &executor, in(a), in(a), out(c), std::int8_t{0}));
  CHECK(size > 0);
  Memory workspace(size);
  CHECK_EQ(launch("Mm", workspace.address, size - 1, executor, session.stream), 161002);
  std::vector<char> host(size);
  CHECK_EQ(launch("Mm", host.data(), size, executor, session.stream), 161002);
  CHECK_EQ(launch("Mm", nullptr, size, executor, session.stream), 161002);
  OK(launch("Mm", workspace.address, size, executor, session.stream));
  session.synchronize();
  unsigned char byte = 0;
  workspace.read(&byte, 1);
  CHECK(byte != 0xFF);  // it was scribbled over
}

TEST("a repeatable executor runs often, with new addresses, until it is destroyed") {
  Session session;
  Array x({2}, {0, 1}), y({2}), x2({2}, {2, 3}), y2({2});
  aclOpExecutor* executor = planned("Exp", x, y);
  OK(call("aclSetAclOpExecutorRepeatable", executor));
  OK(launch("Exp", nullptr, 0, executor, session.stream));
  // The launch before has its addresses already, though it has not run.
  OK(call("aclSetInputTensorAddr", executor, std::size_t{0}, out(x), x2.memory.address));
  OK(call("aclSetTensorAddr", executor, std::size_t{1}, out(y), y2.memory.address));
  OK(launch("Exp", nullptr, 0, executor, session.stream));
  session.synchronize();
  CHECK_NEAR(y.values()[1], 2.718281828, 1e-6);
  CHECK_NEAR(y2.values()[0], 7.389056, 1e-5);
  CHECK_EQ(call("aclSetInputTensorAddr", executor, std::size_t{1}, out(x), x2.memory.address), 161002);
  CHECK_EQ((call<int, aclOpExecutor*, std::size_t, aclTensor*, void*>("aclSetOutputTensorAddr", executor, 0,
                                                                      nullptr, nullptr)),
           561103);
  OK(call("aclDestroyAclOpExecutor", executor));
  CHECK_EQ(launch("Exp", nullptr, 0, executor, session.stream), 561000);
  With refused("UNREPEATABLE", "aclnnExp");
  executor = planned("Exp", x, y);
  CHECK(call("aclSetAclOpExecutorRepeatable", executor) != 0);
  OK(call("aclDestroyAclOpExecutor", executor));
}

TEST("descriptors are left alone between the phases") {
  Session session;
  Array x({3}, {1, 2, 3}), y({3});
  aclOpExecutor* executor = planned("Exp", x, y);
  OK(call("aclSetRawTensorAddr", out(x), x.memory.address));
  CHECK(has(violations(), "aclSetRawTensorAddr between phase 1 and phase 2"));
  call<void>("ascend_double_clear_violations");
  OK(launch("Exp", nullptr, 0, executor, session.stream));
  OK(call("aclSetRawTensorAddr", out(x), x.memory.address));
  session.synchronize();
  CHECK(violations().empty());
}

TEST("a list owns its members") {
  Session session;
  Memory memory(64);
  const aclTensor* members[] = {describe({2}, ACL_FLOAT, memory.address),
                                describe({2}, ACL_FLOAT, memory.address)};
  const aclTensorList* list =
      call<aclTensorList*, const aclTensor* const*, std::uint64_t>("aclCreateTensorList", members, 2);
  OK(call("aclDestroyTensorList", list));
  CHECK(violations().empty());
  CHECK_EQ(call("aclDestroyTensor", members[0]), 161002);
  CHECK(has(violations(), "tensor was destroyed twice"));
  CHECK_EQ(call("aclDestroyTensorList", list), 161002);
  CHECK_EQ((call<int, const aclTensor*>("aclDestroyTensor", nullptr)), 0);
}

TEST("a tensor must lie in one live block, aligned, within its storage") {
  Session session;
  Array y({4});
  Memory memory(64);
  const std::int64_t shape[] = {4}, far[] = {5}, storage[] = {16}, small[] = {4};
  const auto made = [&](const std::int64_t* strides, std::int64_t offset, const std::int64_t* whole,
                        void* data) {
    return Owned<aclTensor>(call<aclTensor*, const std::int64_t*, std::uint64_t, int, const std::int64_t*,
                                 std::int64_t, int, const std::int64_t*, std::uint64_t, void*>(
                                "aclCreateTensor", shape, 1, ACL_FLOAT, strides, offset, 2, whole, 1, data),
                            "aclDestroyTensor");
  };
  const auto answer = [&](const Owned<aclTensor>& x) {
    return refusal("Exp", static_cast<const aclTensor*>(static_cast<aclTensor*>(x)), out(y));
  };
  char* base = static_cast<char*>(memory.address);
  CHECK_EQ(answer(made(nullptr, 0, storage, base)), 0);
  CHECK_EQ(answer(made(far, 0, storage, base)), 0);
  CHECK_EQ(answer(made(far, 1, storage, base)), 161002);           // one element past the storage
  CHECK_EQ(answer(made(nullptr, 1, small, base)), 161002);         // the storage does not cover the offset
  CHECK_EQ(answer(made(nullptr, 0, small, base + 16)), 161002);    // not aligned
  CHECK_EQ(answer(made(nullptr, 0, storage, base + 32)), 161002);  // beyond the block
  CHECK(has(violations(), "reach beyond"));
  CHECK_EQ(answer(made(nullptr, 0, small, nullptr)), 161002);
  float host[16];
  CHECK_EQ(answer(made(nullptr, 0, small, host)), 161002);
  CHECK_EQ(refusal("Exp", static_cast<const aclTensor*>(nullptr), out(y)), 161001);
  CHECK((call<aclTensor*, const std::int64_t*, std::uint64_t, int, const std::int64_t*, std::int64_t, int,
              const std::int64_t*, std::uint64_t, void*>("aclCreateTensor", nullptr, 1, 0, nullptr, 0, 2,
                                                         storage, 1, base) == nullptr));
}

TEST("getters tell what was described") {
  Session session;
  Array x({2, 3}, numbers(6, 1));
  std::int64_t *dims = nullptr, *strides = nullptr;
  std::uint64_t rank = 0;
  OK(call("aclGetViewShape", static_cast<const aclTensor*>(x), &dims, &rank));
  CHECK(rank == 2 && dims[0] == 2 && dims[1] == 3);
  OK(call("aclGetViewStrides", static_cast<const aclTensor*>(x), &strides, &rank));
  CHECK(rank == 2 && strides[0] == 3 && strides[1] == 1);
  delete[] dims;
  delete[] strides;
}

TEST("memory of another device is refused") {
  Session session;
  void *own = nullptr, *other = nullptr, *address = nullptr;
  OK(call("aclrtGetCurrentContext", &own));
  OK(call("aclrtCreateContext", &other, std::int32_t{1}));
  OK(call("aclrtMalloc", &address, std::size_t{64}, 0));
  OK(call("aclrtSetCurrentContext", own));
  Array y({4});
  Owned<aclTensor> x(describe({4}, ACL_FLOAT, address), "aclDestroyTensor");
  CHECK_EQ(refusal("Exp", static_cast<const aclTensor*>(static_cast<aclTensor*>(x)), out(y)), 161002);
  CHECK(message().find("another device") != std::string::npos);
  OK(call("aclrtFree", address));
  OK(call("aclrtDestroyContext", other));
}

TEST("without ASCEND_OPP_PATH ops answer 561107 where asked to") {
  Session session;
  With strict("STRICT_ENV", "1");
  Array x({4}, {1, 2, 3, 4}), y({4});
  const char* before = std::getenv("ASCEND_OPP_PATH");
  const std::string kept = before ? before : "";
  unsetenv("ASCEND_OPP_PATH");
  CHECK_EQ(refusal("Exp", in(x), out(y)), 561107);
  setenv("ASCEND_OPP_PATH", "/nowhere", 1);
  CHECK_EQ(refusal("Exp", in(x), out(y)), 0);
  before ? setenv("ASCEND_OPP_PATH", kept.c_str(), 1) : unsetenv("ASCEND_OPP_PATH");
}
