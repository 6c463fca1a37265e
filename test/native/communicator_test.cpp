// Collectives between CPU ranks: exact integers, zero tolerance, and the order of sums.
#include <sched.h>

#include <filesystem>
#include <string>
#include <vector>

#include "backend/registry.h"
#include "collective_checks.h"
#include "core/error.h"
#include "harness.h"
#include "ranks.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

// Small pieces, so that a call of a few thousand elements has many; a size that no piece divides.
const RanksOptions kSmallSlots{.engine_options = R"({"slotKiB": 64})"};

const std::vector<std::int64_t> kCounts = {0, 1, 2, 3, 17, 64, 1009, 4096, 4099, 100003};

std::vector<pid_t> threads_of_this_process() {
  std::vector<pid_t> threads;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task"))
    threads.push_back(std::stoi(entry.path().filename().string()));
  return threads;
}

}  // namespace

TEST("communicator: exact integers on 1 to 8 ranks that are threads") {
  for (int size = 1; size <= 8; ++size)
    on_threads(size, kSmallSlots, [](const Rank& rank) { check_everything(rank, kCounts); });
}

TEST("communicator: exact integers on 1 to 8 ranks that are processes") {
  for (int size = 1; size <= 8; ++size) {
    const auto answers = in_processes(size, {}, [](const Rank& rank) -> std::string {
      check_everything(rank, {0, 1009, 50021});
      return "good";
    });
    for (const std::string& answer : answers) CHECK_EQ(answer, "good");
  }
}

TEST("communicator: ranks held on one core work, and may run where they might before") {
  const auto answers = in_processes(2, {}, [](const Rank& rank) -> std::string {
    cpu_set_t everywhere, first;
    CHECK(sched_getaffinity(0, sizeof everywhere, &everywhere) == 0);
    CPU_ZERO(&first);
    for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&first) == 0; ++core)
      if (CPU_ISSET(core, &everywhere)) CPU_SET(core, &first);
    const auto confine = [&](const cpu_set_t& cores) {
      for (const pid_t thread : threads_of_this_process())
        CHECK(sched_setaffinity(thread, sizeof cores, &cores) == 0);
    };
    for (int turn = 0; turn < 3; ++turn) {
      confine(first);
      check_everything(rank, {1009, 50021});
      confine(everywhere);
      check_everything(rank, {50021});
      for (const pid_t thread : threads_of_this_process()) {
        cpu_set_t now;
        CHECK(sched_getaffinity(thread, sizeof now, &now) == 0);
        CHECK(CPU_EQUAL(&now, &everywhere));
      }
    }
    return "good";
  });
  for (const std::string& answer : answers) CHECK_EQ(answer, "good");
}

TEST("communicator: 64 MiB, and 4 MiB in short dtypes, on 1 to 8 ranks") {
  constexpr std::int64_t kCount = (64 << 20) / 4 - 3;
  for (int size = 1; size <= 8; ++size) {
    on_threads(size, {}, [](const Rank& rank) {
      check_all_reduce(rank, kCount, DType::f32, CollectiveReduce::sum);
      if (rank.size > 2 && rank.size < 8) return;
      check_reduce_scatter(rank, kCount / 8, DType::bf16, CollectiveReduce::sum, false);
      check_all_gather(rank, kCount / 8, DType::f16, true);
      check_broadcast(rank, kCount / 8, DType::bf16, rank.size - 1);
    });
  }
}

TEST("communicator: sums are made in one pairwise tree and rounded once") {
  for (int size = 2; size <= 8; ++size) {
    on_threads(size, kSmallSlots, [](const Rank& rank) {
      for (const DType dtype : kDTypes)
        for (const std::int64_t count : {5, 3001, 70001}) check_tree(rank, dtype, count);
    });
  }
}

TEST("communicator: many calls in flight, beside the device's own work") {
  on_threads(2, kSmallSlots, [](const Rank& rank) {
    constexpr std::int64_t kCount = 50021;
    std::vector<Guarded> tensors;
    std::vector<Event> events;
    const Tensor other = rank.device.empty({kCount});
    for (int turn = 0; turn < 12; ++turn) {
      tensors.emplace_back(rank.device, kCount, DType::f32);
      tensors.back().set(numbers(kCount, rank.rank + turn));
      events.push_back(rank.communicator.all_reduce(tensors.back().tensor(), {}));
      rank.device.fill(other, static_cast<float>(turn));
      rank.device.unary(UnaryOp::square, other, other, 0, 0);
      CHECK_EQ(other.data<float>()[kCount - 1], static_cast<float>(turn * turn));
    }
    for (int turn = 0; turn < 12; ++turn) {
      rank.wait(events[static_cast<std::size_t>(turn)]);
      std::vector<float> wanted = numbers(kCount, turn);
      for (std::int64_t i = 0; i < kCount; ++i) wanted[static_cast<std::size_t>(i)] += number(i, 1 + turn);
      check_same(tensors[static_cast<std::size_t>(turn)].values(), wanted, "a call in flight");
    }
  });
}

TEST("communicator: the device computes while a collective waits") {
  on_threads(2, {}, [](const Rank& rank) {
    const Guarded x(rank.device, 1000, DType::f32), y(rank.device, 1000, DType::f32);
    x.set(numbers(1000, rank.rank));
    y.set(numbers(1000, 0));
    // Rank 1 asks only after its op, and rank 0 cannot finish before: its op runs while the call is open.
    Event event;
    if (rank.rank == 0) event = rank.communicator.all_reduce(x.tensor(), {});
    rank.device.unary(UnaryOp::affine, y.tensor(), y.tensor(), 2, 1);
    CHECK_EQ(y.values()[5], 2 * number(5, 0) + 1);
    if (rank.rank == 1) event = rank.communicator.all_reduce(x.tensor(), {});
    rank.wait(event);
    check_same(x.values(), reduced(1000, 2, CollectiveReduce::sum), "all_reduce");
  });
}

TEST("communicator: tensors are kept alive until the event") {
  on_threads(2, kSmallSlots, [](const Rank& rank) {
    const std::size_t before = rank.device.memory().used;
    Event event;
    {
      const Tensor x = rank.device.empty({1 << 20});
      rank.device.fill(x, 1);
      event = rank.communicator.all_reduce(x, {});
    }
    rank.wait(event);
    CHECK_EQ(rank.device.memory().used, before);
  });
}

TEST("communicator: what is refused before anything is sent") {
  on_threads(2, {}, [](const Rank& rank) {
    const Tensor x = rank.device.empty({6, 4}), half = rank.device.empty({12}, DType::bf16);
    const auto other = open_backend("cpu", 0, "{}");
    Communicator& communicator = rank.communicator;
    CHECK_THROWS("ERR_SHAPE", communicator.all_reduce(x.transpose(0, 1), {}));
    CHECK_THROWS("ERR_DTYPE", communicator.all_reduce(rank.device.empty({4}, DType::i32), {}));
    CHECK_THROWS("ERR_DEVICE", communicator.all_reduce(other->empty({4}), {}));
    CHECK_THROWS("ERR_DEVICE", communicator.all_reduce({}, {}));
    CHECK_THROWS("ERR_DTYPE", communicator.all_gather(x, half));
    CHECK_THROWS("ERR_SHAPE", communicator.reduce_scatter(rank.device.empty({11}), x, {}));
    CHECK_THROWS("ERR_ARGUMENT", communicator.broadcast(x, 2));
    rank.wait(communicator.barrier());  // and it still works
    CHECK_EQ(communicator.description(), "shared memory, 2 ranks");
  });
}

TEST("communicator: options") {
  const auto device = open_backend("cpu", 0, "{}");
  const auto refuse = [&](const char* code, const char* engine, CommunicatorOptions options) {
    CHECK_THROWS(code, make_communicator_setup(engine, device, options));
  };
  refuse("ERR_OPTION", "shared-memory", {2, 2, 1, "{}"});
  refuse("ERR_OPTION", "shared-memory", {-1, 2, 1, "{}"});
  refuse("ERR_OPTION", "shared-memory", {0, 0, 1, "{}"});
  refuse("ERR_OPTION", "shared-memory", {0, 2, 0, "{}"});
  refuse("ERR_OPTION", "shared-memory", {0, 2, 1, R"({"slots": 4})"});
  refuse("ERR_OPTION", "shared-memory", {0, 2, 1, R"({"slotKiB": 63})"});
  refuse("ERR_OPTION", "shared-memory", {0, 2, 1, R"({"folder": "here"})"});
  refuse("ERR_OPTION", "../x", {0, 2, 1, "{}"});
  refuse("ERR_PLUGIN_NOT_SHIPPED", "carrier_pigeon", {0, 2, 1, "{}"});
}
