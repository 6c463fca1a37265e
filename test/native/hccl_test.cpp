// Collectives of HCCL, ranks as threads, each with an NPU of its own. Runs where DANCEFLUX_TEST_BACKEND names
// an Ascend device: on hardware with at least four, or on the test double.
#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "backend/registry.h"
#include "collective_checks.h"
#include "core/error.h"
#include "harness.h"
#include "ranks.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

RanksOptions over_hccl(double timeout_seconds = 60, const char* engine_options = "{}") {
  const char* name = std::getenv("DANCEFLUX_TEST_BACKEND");
  if (!name || std::strncmp(name, "ascend", 6) != 0)
    throw Skipped{"DANCEFLUX_TEST_BACKEND names no Ascend device"};
  return {"hccl", timeout_seconds, engine_options, "ascend", "{}"};
}

void check_has(const std::string& text, const std::string& part) {
  if (text.find(part) == std::string::npos)
    fail_at(__FILE__, __LINE__, "expected \"", part, "\" in \"", text, "\"");
}

void pause_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

/// What the host hears of a call and of what follows it.
std::string heard(const Rank& rank, const std::function<Event()>& call) {
  return message_of([&] {
    rank.wait(call());
    rank.device.synchronize();
  });
}

/// A control of the double; null on hardware, and before CANN is open.
template <class Function>
Function* control(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

using SetFault = void(const char* function, std::uint64_t nth, int code);

/// How ranks that do not even connect fail the test.
std::string failure_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Failure& failure) {
    return failure.message;
  }
  return {};
}

}  // namespace

TEST("hccl ranks: exact integers on 1 to 4 ranks") {
  for (int size = 1; size <= 4; ++size) {
    on_threads(size, over_hccl(), [](const Rank& rank) { check_everything(rank, {0, 1, 57, 1009, 20003}); });
  }
}

TEST("hccl ranks: sums are made in the pairwise tree, as everywhere") {
  const char* const strict = R"({"bufferSizeMiB": 64, "deterministic": "strict"})";
  for (int size = 2; size <= 4; ++size) {
    on_threads(size, over_hccl(60, strict), [](const Rank& rank) {
      for (const DType dtype : kDTypes)
        for (const std::int64_t count : {5, 3001}) check_tree(rank, dtype, count);
    });
  }
}

TEST("hccl ranks: ordered sums of more than is gathered at once") {
  on_threads(3, over_hccl(), [](const Rank& rank) {
    constexpr std::int64_t kCount = 6000001;
    const Tensor x = rank.device.empty({kCount});
    const std::vector<float> mine = numbers(kCount, rank.rank);
    rank.device.upload(x, mine.data());
    rank.wait(rank.communicator.all_reduce(x, {CollectiveReduce::sum, true}));
    check_same(downloaded(rank.device, x), reduced(kCount, 3, CollectiveReduce::sum), "ordered sum");
  });
}

TEST("hccl ranks: collectives run beside the device's own work, in the order that events ask for") {
  on_threads(2, over_hccl(), [](const Rank& rank) {
    Backend& device = rank.device;
    const Tensor x = device.empty({5000}), y = device.empty({5000});
    for (int turn = 1; turn <= 20; ++turn) {
      device.fill(x, static_cast<float>(turn));
      const Event event = rank.communicator.all_reduce(x, {});
      device.fill(y, -1);  // beside it
      rank.wait(event);
      device.binary(BinaryOp::add, y, x, y, 1);
      check_same(downloaded(device, y), std::vector<float>(5000, static_cast<float>(2 * turn - 1)), "sum");
    }
  });
}

TEST("hccl ranks: a rank that does not come ends the wait at the deadline, and the device with it") {
  on_threads(2, over_hccl(0.5), [](const Rank& rank) {
    const Tensor x = rank.device.empty({1000});
    rank.device.fill(x, 1);
    CHECK_EQ(heard(rank, [&] { return rank.communicator.all_reduce(x, {}); }), "");
    if (rank.rank == 1) return pause_for(1.5);
    rank.communicator.progress.heard(1, {1});
    const auto start = std::chrono::steady_clock::now();
    const std::string told = heard(rank, [&] { return rank.communicator.all_reduce(x, {}); });
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
    check_has(told,
              "all_reduce 2: rank 0 waited 0.5 s for the other ranks: rank 1 did not come, "
              "last heard of at call 1");
    check_has(heard(rank, [&] { return rank.communicator.barrier(); }),
              "barrier 3: all_reduce 2: rank 0 waited");
    check_has(message_of([&] { downloaded(rank.device, x); }), "all_reduce 2");
  });
}

TEST("hccl ranks: abort ends what waits") {
  on_threads(2, over_hccl(), [](const Rank& rank) {
    rank.wait(rank.communicator.barrier());
    rank.device.synchronize();
    if (rank.rank == 1) return pause_for(1);
    const Event event = rank.communicator.barrier();
    std::thread([&] {
      pause_for(0.1);
      rank.communicator.abort("enough");
    }).join();
    CHECK_EQ(heard(rank, [&] { return event; }), "aborted: enough");
    CHECK_EQ(heard(rank, [&] { return rank.communicator.barrier(); }), "barrier 3: aborted: enough");
  });
}

TEST("hccl ranks: what HCCL refuses is told with its words") {
  on_threads(2, over_hccl(), [](const Rank& rank) {
    const auto set_fault = control<SetFault>("ascend_double_set_fault");
    if (!set_fault || rank.rank == 1) return;
    const Tensor x = rank.device.empty({10});
    rank.device.fill(x, 1);
    set_fault("HcclAllReduce", 1, 4);
    const std::string told = heard(rank, [&] { return rank.communicator.all_reduce(x, {}); });
    check_has(told, "all_reduce 1: HcclAllReduce: expected success, got 4 (an inner failure): ");
    check_has(heard(rank, [&] { return rank.communicator.barrier(); }), "barrier 2: all_reduce 1: ");
  });
}

TEST("hccl ranks: a link that HCCL calls lost ends the wait before the deadline") {
  on_threads(2, over_hccl(), [](const Rank& rank) {
    const auto set = control<void(const char*, const char*)>("ascend_double_set");
    if (!set) return;
    const Tensor x = rank.device.empty({10});
    rank.device.fill(x, 1);
    CHECK_EQ(heard(rank, [&] { return rank.communicator.all_reduce(x, {}); }), "");
    if (rank.rank == 1) return pause_for(1);
    set("HCCL_ASYNC_ERROR", "1");
    const auto start = std::chrono::steady_clock::now();
    const std::string told = heard(rank, [&] { return rank.communicator.all_reduce(x, {}); });
    set("HCCL_ASYNC_ERROR", nullptr);
    check_has(told, "all_reduce 2: the link failed: ");
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));
  });
}

TEST("hccl ranks: ranks that a table lists meet by it") {
  over_hccl();
  const auto device = open_backend("ascend", 0, "{}");  // opens CANN
  if (!dlsym(RTLD_DEFAULT, "ascend_double_set")) throw Skipped{"a table tells the addresses of a machine"};
  const auto path = std::filesystem::temp_directory_path() / ("ranks-" + std::to_string(getpid()) + ".json");
  const auto write = [&](const char* text) { std::ofstream(path) << text; };
  write(R"({"status": "completed", "version": "1.0", "server_count": "1", "server_list": [{"server_id": "a",
    "device": [{"device_id": "0", "rank_id": "0"}, {"device_id": "1", "rank_id": "1"}]}]})");
  const std::string options = R"({"rankTable": ")" + path.string() + R"("})";
  on_threads(2, over_hccl(60, options.c_str()), [](const Rank& rank) {
    check_everything(rank, {0, 57, 1009});
  });
  write(R"({"status": "initializing"})");
  const std::string told = failure_of([&] {
    on_threads(2, over_hccl(5, options.c_str()),
               [](const Rank& rank) { rank.wait(rank.communicator.barrier()); });
  });
  std::filesystem::remove(path);
  check_has(told, "is no complete rank table");
}

TEST("hccl ranks: a failure of any function is told with its name, and no rank waits on") {
  over_hccl();
  const auto device = open_backend("ascend", 0, "{}");  // opens CANN
  const auto set_fault = control<SetFault>("ascend_double_set_fault");
  const auto clear_faults = control<void()>("ascend_double_clear_faults");
  if (!set_fault || !clear_faults) throw Skipped{"no test double here"};
  const auto every_call = [](const Rank& rank) {
    const Tensor x = rank.device.empty({8}), half = rank.device.empty({4});
    rank.device.fill(x, 1);
    rank.wait(rank.communicator.all_reduce(x, {}));
    rank.wait(rank.communicator.reduce_scatter(half, x, {}));
    rank.wait(rank.communicator.all_gather(x, half));
    rank.wait(rank.communicator.broadcast(x, 0));
    rank.wait(rank.communicator.barrier());
    rank.device.synchronize();
  };
  for (const char* function : {"HcclGetRootInfo", "HcclCommInitRootInfoConfig", "HcclAllReduce",
                               "HcclReduceScatter", "HcclAllGather", "HcclBroadcast", "HcclBarrier"}) {
    set_fault(function, 1, 4);
    std::array<std::string, 2> told;
    const std::string of_all = failure_of([&] {
      on_threads(2, over_hccl(1), [&](const Rank& rank) {
        told[static_cast<std::size_t>(rank.rank)] = message_of([&] { every_call(rank); });
      });
    });
    clear_faults();
    const std::string all = of_all + " | " + told[0] + " | " + told[1];
    // Of two ranks that do not connect one is told of: here perhaps the one that waited for the other.
    check_has(all, all.find("did not meet all others") == std::string::npos ? function : "did not meet");
    if (of_all.empty() && (told[0].empty() || told[1].empty()))
      fail_at(__FILE__, __LINE__, function, ": expected both ranks to hear of it, got ", all);
  }
}

TEST("hccl ranks: connecting has a deadline, and offers and tensors are checked") {
  const RanksOptions hccl = over_hccl();
  const auto device = open_backend("ascend", 0, "{}");
  const auto make = [&](int rank) { return make_communicator_setup("hccl", device, {rank, 2, 0.3, "{}"}); };
  const auto first = make(0), second = make(1);
  std::vector<std::string> offers = {first->offer(), second->offer()};
  const auto refused = [&](const std::vector<std::string>& changed, const std::string& told) {
    check_has(message_of([&] { first->connect(changed); }), told);
  };
  refused({offers[0]}, "expected 2 offers, got 1");
  refused({offers[0], ""}, "rank 1: expected an offer of hccl");
  refused({offers[0].substr(0, 400), offers[1]}, "rank 0: expected an offer of hccl");
  refused({offers[1], offers[0]}, "rank 0: expected an offer of hccl");
  refused(offers, "rank 0 of 2 did not meet all others within 0.3 s");
  CHECK_THROWS("ERR_OPTION", make_communicator_setup("hccl", device, {0, 2, 1, R"({"buffer": 1})"}));
  CHECK_THROWS("ERR_DEVICE", make_communicator_setup("hccl", open_backend("cpu", 0, "{}"), {0, 2, 1, "{}"}));
  on_threads(1, hccl, [](const Rank& rank) {
    const Tensor x = rank.device.empty({12});
    CHECK_THROWS("ERR_SHAPE", rank.communicator.all_reduce(x.view({3, 4}).transpose(0, 1), {}));
    CHECK_THROWS("ERR_DTYPE", rank.communicator.all_reduce(rank.device.empty({4}, DType::i32), {}));
    CHECK_THROWS("ERR_SHAPE", rank.communicator.reduce_scatter(rank.device.empty({11}), x, {}));
    CHECK_THROWS("ERR_ARGUMENT", rank.communicator.broadcast(x, 1));
    check_has(rank.communicator.description(), "HCCL of CANN");
  });
}
