// Collectives between processes: this program starts itself once per rank.
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "tools.h"

using namespace double_test;

namespace {

using Variables = std::vector<std::pair<std::string, std::string>>;

int own_rank() {
  const char* rank = std::getenv("DOUBLE_TEST_RANK");
  return rank ? std::atoi(rank) : -1;
}
std::uint32_t rank_count() { return static_cast<std::uint32_t>(std::atoi(std::getenv("DOUBLE_TEST_RANKS"))); }

HcclRootInfo root_info() {
  HcclRootInfo root;
  std::ifstream file(std::getenv("DOUBLE_TEST_ROOT"), std::ios::binary);
  CHECK(bool(file.read(root.internal, sizeof root.internal)));
  return root;
}

/// Starts `ranks` processes that run the one test of that name; all must pass.
void on_ranks(int ranks, const std::string& test, const Variables& more = {}) {
  Session session;
  HcclRootInfo root;
  OK(call("HcclGetRootInfo", &root));
  const std::string path = "/tmp/ascend_double_root_" + std::to_string(getpid());
  std::ofstream(path, std::ios::binary).write(root.internal, sizeof root.internal);
  std::vector<int> processes;
  for (int rank = 0; rank < ranks; ++rank) {
    Variables environment = more;
    environment.emplace_back("DOUBLE_TEST_RANK", std::to_string(rank));
    environment.emplace_back("DOUBLE_TEST_RANKS", std::to_string(ranks));
    environment.emplace_back("DOUBLE_TEST_ROOT", path);
    processes.push_back(start(test, environment));
  }
  int failed = 0;
  for (const int process : processes) failed += finish(process) != 0;
  unlink(path.c_str());
  CHECK_EQ(failed, 0);
}

struct Comm {
  explicit Comm(const Session&) {
    const HcclRootInfo root = root_info();
    OK(call<int, std::uint32_t, const HcclRootInfo*, std::uint32_t, HcclComm*>(
        "HcclCommInitRootInfo", rank_count(), &root, static_cast<std::uint32_t>(own_rank()), &handle));
  }
  ~Comm() { call("HcclCommDestroy", handle); }
  HcclComm handle = nullptr;
};

/// The first version of HcclCommConfig that has 300 bytes.
struct Config {
  std::size_t size = 300;
  std::uint32_t magic = 0xf0f0f0f0, version = 5;
  std::uint64_t reserved = 0;
  std::uint32_t buffer = 0xffffffff, deterministic = 0xffffffff;
  char name[128] = {}, udi[128] = {};
  std::uint32_t mode = 0, traffic = 0xffffffff, service = 0xffffffff;
};
static_assert(sizeof(Config) == 304, "300 and padding");

int init_alone(const Config& config) {
  HcclRootInfo root;
  OK(call("HcclGetRootInfo", &root));
  HcclComm comm = nullptr;
  const int code = call<int, std::uint32_t, const HcclRootInfo*, std::uint32_t, const void*, HcclComm*>(
      "HcclCommInitRootInfoConfig", 1, &root, 0, &config, &comm);
  if (code == 0) OK(call("HcclCommDestroy", comm));
  return code;
}

}  // namespace

TEST("collectives give every rank the same sums, gathers and parts") {
  const int rank = own_rank();
  if (rank < 0) {
    for (const int ranks : {1, 3}) on_ranks(ranks, "collectives give every rank");
    return;
  }
  Session session;
  Comm comm(session);
  const std::int64_t n = rank_count(), count = 300000;  // more than one chunk
  std::vector<double> mine(count);
  for (std::int64_t i = 0; i < count; ++i) mine[i] = (rank + 1) * (i % 100);
  Array send({count}, mine), receive({count});
  const auto total = [&](std::int64_t i) { return static_cast<double>(n * (n + 1) / 2 * (i % 100)); };
  OK(call("HcclAllReduce", send.memory.address, receive.memory.address, std::uint64_t(count), 4, 0,
          comm.handle, session.stream));
  session.synchronize();
  const std::vector<double> sums = receive.values();
  for (std::int64_t i = 0; i < count; ++i) CHECK_EQ(sums[i], total(i));
  for (const int dtype : {ACL_BF16, ACL_FLOAT16}) {
    Array half({8}, std::vector<double>(8, rank + 1), dtype);
    OK(call("HcclAllReduce", half.memory.address, half.memory.address, std::uint64_t{8},
            dtype == ACL_BF16 ? 11 : 3, 0, comm.handle, session.stream));
    session.synchronize();
    CHECK_EQ(half.values()[7], n * (n + 1) / 2.0);
  }
  const std::int64_t part = 70000;
  Array parts({n * part}, std::vector<double>(n * part, rank + 1)), own({part}), all({n * part});
  OK(call("HcclReduceScatter", parts.memory.address, own.memory.address, std::uint64_t(part), 4, 2,
          comm.handle, session.stream));
  OK(call("HcclAllGather", own.memory.address, all.memory.address, std::uint64_t(part), 4, comm.handle,
          session.stream));
  session.synchronize();
  CHECK_EQ(own.values()[part - 1], static_cast<double>(n));
  CHECK_EQ(all.values()[n * part - 1], static_cast<double>(n));
  Array told({4}, std::vector<double>(4, rank == 0 ? 9 : 1));
  OK(call("HcclBroadcast", told.memory.address, std::uint64_t{4}, 4, std::uint32_t{0}, comm.handle,
          session.stream));
  OK(call("HcclBarrier", comm.handle, session.stream));
  session.synchronize();
  CHECK_EQ(told.values()[3], 9.0);
  std::uint32_t size = 0, id = 99;
  OK(call("HcclGetRankSize", comm.handle, &size));
  OK(call("HcclGetRankId", comm.handle, &id));
  CHECK(size == n && id == static_cast<std::uint32_t>(rank));
  int error = -1;
  OK(call("HcclGetCommAsyncError", comm.handle, &error));
  CHECK_EQ(error, 0);
  CHECK(violations().empty());
}

TEST("a message goes from one rank to another") {
  const int rank = own_rank();
  if (rank < 0) return on_ranks(2, "a message goes from one rank");
  Session session;
  Comm comm(session);
  const std::int64_t count = 50000;
  Array data({count}, std::vector<double>(count, rank ? 0 : 7));
  const std::uint32_t peer = 1 - rank;
  OK(call(rank ? "HcclRecv" : "HcclSend", data.memory.address, std::uint64_t(count), 4, peer, comm.handle,
          session.stream));
  session.synchronize();
  CHECK_EQ(data.values()[count - 1], 7.0);
}

TEST("ranks that disagree wait until the time for execution is over") {
  const int rank = own_rank();
  if (rank < 0) return on_ranks(2, "ranks that disagree wait", {{"HCCL_EXEC_TIMEOUT", "1"}});
  Session session;
  Comm comm(session);
  Array data({8}, std::vector<double>(8, 1.0));
  OK(call("HcclAllReduce", data.memory.address, data.memory.address, std::uint64_t(rank ? 8 : 4), 4, 0,
          comm.handle, session.stream));
  const auto before = std::chrono::steady_clock::now();
  CHECK_EQ(call("aclrtSynchronizeStream", session.stream), 507048);
  CHECK(message().find("EI0002") != std::string::npos);
  CHECK(std::chrono::steady_clock::now() - before > std::chrono::milliseconds(700));
}

TEST("a rank that dies leaves the others waiting until the time is over") {
  const int rank = own_rank();
  if (rank < 0) return on_ranks(2, "a rank that dies leaves", {{"HCCL_EXEC_TIMEOUT", "1"}});
  Session session;
  Comm comm(session);
  if (rank == 1) return;
  Array data({8}, std::vector<double>(8, 1.0));
  OK(call("HcclAllReduce", data.memory.address, data.memory.address, std::uint64_t{8}, 4, 0, comm.handle,
          session.stream));
  CHECK_EQ(call("aclrtSynchronizeStream", session.stream), 507048);
}

TEST("without determinism the order of ranks changes, and all of them see the same") {
  const int rank = own_rank();
  if (rank < 0) {
    on_ranks(3, "without determinism the order of ranks", {{"HCCL_DETERMINISTIC", "TRUE"}});
    on_ranks(3, "without determinism the order of ranks", {{"HCCL_DETERMINISTIC", "false"}});
    return;
  }
  Session session;
  Comm comm(session);
  // 1 + 2^-24 + 2^-24 is 1 or the number after it
  const double mine = rank == 0 ? 1 : 0x1p-24;
  std::vector<double> seen;
  for (int i = 0; i < 6; ++i) {
    Array data({1}, std::vector<double>{mine}), all({3});
    OK(call("HcclAllReduce", data.memory.address, data.memory.address, std::uint64_t{1}, 4, 0, comm.handle,
            session.stream));
    OK(call("HcclAllGather", data.memory.address, all.memory.address, std::uint64_t{1}, 4, comm.handle,
            session.stream));
    session.synchronize();
    const std::vector<double> values = all.values();
    CHECK(values[0] == values[1] && values[1] == values[2]);
    seen.push_back(values[0]);
  }
  bool same = true;
  for (const double value : seen) same = same && value == seen[0];
  CHECK_EQ(same, std::string(std::getenv("HCCL_DETERMINISTIC")) == "TRUE");
}

TEST("a communicator's config is checked by magic, size and version") {
  Session session;
  OK(init_alone({}));
  Config config;
  config.magic = 1;
  CHECK_EQ(init_alone(config), 1);
  config = {};
  config.size = 304;
  CHECK_EQ(init_alone(config), 1);
  config = {};
  config.version = 10;
  CHECK_EQ(init_alone(config), 1);
  config = {};
  config.buffer = 0;
  CHECK_EQ(init_alone(config), 1);
  config = {};
  config.deterministic = 3;
  CHECK_EQ(init_alone(config), 1);
  config.deterministic = 2;
  CHECK_EQ(init_alone(config), 0);
  With chip("SOC", "Ascend910A");
  CHECK_EQ(init_alone(config), 1);
}

TEST("root info is 4108 bytes and every one of them counts") {
  Session session;
  HcclRootInfo root;
  OK(call("HcclGetRootInfo", &root));
  root.internal[4107] ^= 1;
  HcclComm comm = nullptr;
  CHECK_EQ((call<int, std::uint32_t, const HcclRootInfo*, std::uint32_t, HcclComm*>("HcclCommInitRootInfo", 1,
                                                                                    &root, 0, &comm)),
           1);
  std::memset(&root, 0, sizeof root);
  CHECK_EQ((call<int, std::uint32_t, const HcclRootInfo*, std::uint32_t, HcclComm*>("HcclCommInitRootInfo", 1,
                                                                                    &root, 0, &comm)),
           1);
}

TEST("a missing rank is a timeout, and too many are refused") {
  Session session;
  With patience("HCCL_CONNECT_MS", "200");
  HcclRootInfo root;
  OK(call("HcclGetRootInfo", &root));
  HcclComm comm = nullptr;
  CHECK_EQ((call<int, std::uint32_t, const HcclRootInfo*, std::uint32_t, HcclComm*>("HcclCommInitRootInfo", 2,
                                                                                    &root, 0, &comm)),
           9);
  OK(call("HcclGetRootInfo", &root));
  CHECK_EQ((call<int, std::uint32_t, const HcclRootInfo*, std::uint32_t, HcclComm*>("HcclCommInitRootInfo", 2,
                                                                                    &root, 2, &comm)),
           1);
}

TEST("types and ops that do not reduce are refused") {
  Session session;
  HcclRootInfo root;
  OK(call("HcclGetRootInfo", &root));
  HcclComm comm = nullptr;
  OK(call<int, std::uint32_t, const HcclRootInfo*, std::uint32_t, HcclComm*>("HcclCommInitRootInfo", 1, &root,
                                                                             0, &comm));
  Memory memory(64);
  const auto answer = [&](int type, int op) {
    return call("HcclAllReduce", memory.address, memory.address, std::uint64_t{4}, type, op, comm,
                session.stream);
  };
  CHECK_EQ(answer(4, 0), 0);
  CHECK_EQ(answer(11, 3), 0);
  CHECK_EQ(answer(11, 1), 5);  // prod of BFP16
  CHECK_EQ(answer(10, 0), 5);  // FP64
  CHECK_EQ(answer(6, 0), 5);   // UINT64
  CHECK_EQ(answer(27, 0), 5);  // the number of BF16 in aclDataType
  CHECK_EQ(answer(4, 4), 5);   // there is no average
  session.synchronize();
  std::vector<char> host(64);
  CHECK_EQ(call("HcclAllReduce", static_cast<void*>(host.data()), memory.address, std::uint64_t{4}, 4, 0,
                comm, session.stream),
           1);
  CHECK_EQ(
      call("HcclAllReduce", memory.address, memory.address, std::uint64_t{17}, 4, 0, comm, session.stream),
      1);
  CHECK_EQ(call<std::size_t>("ascend_double_live", "communicator"), 1u);
  OK(call("HcclCommDestroy", comm));
  CHECK_EQ(answer(4, 0), 1);
}

TEST("the environment of HCCL is read once and refused where it is wrong") {
  if (const char* wanted = std::getenv("DOUBLE_TEST_ENVIRONMENT")) {
    Session session;
    HcclRootInfo root;
    CHECK_EQ(call("HcclGetRootInfo", &root), std::atoi(wanted));
    if (std::atoi(wanted)) CHECK(message().find("EI0001") != std::string::npos);
    unsetenv("HCCL_DETERMINISTIC");
    setenv("HCCL_BUFFSIZE", "7", 1);
    CHECK_EQ(call("HcclGetRootInfo", &root), std::atoi(wanted));
    return;
  }
  const std::string self = "the environment of HCCL is read once";
  for (const auto& [name, value, code] :
       std::vector<std::tuple<const char*, const char*, const char*>>{{"HCCL_DETERMINISTIC", "True", "0"},
                                                                      {"HCCL_DETERMINISTIC", "strict", "0"},
                                                                      {"HCCL_DETERMINISTIC", "1", "1"},
                                                                      {"HCCL_BUFFSIZE", "0", "1"},
                                                                      {"HCCL_BUFFSIZE", "64MB", "1"},
                                                                      {"HCCL_CONNECT_TIMEOUT", "60", "1"},
                                                                      {"HCCL_OP_EXPANSION_MODE", "FAST", "1"},
                                                                      {"HCCL_ALGO", "ring", "1"}})
    CHECK_EQ(rerun(self, {{name, value}, {"DOUBLE_TEST_ENVIRONMENT", code}}), 0);
}
