// Collectives over Gloo, on loopback. Skipped where the plugin was not built or libgloo is not there.
#include <signal.h>

#include <chrono>
#include <thread>

#include "backend/registry.h"
#include "collective_checks.h"
#include "core/error.h"
#include "harness.h"
#include "ranks.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

RanksOptions over_gloo(double timeout_seconds = 60) {
  for (const BackendReport& report : probe_backends()) {
    if (report.name == "gloo" && report.state != "READY") throw Skipped{report.state + ": " + report.message};
  }
  return {"gloo", timeout_seconds, R"({"address": "127.0.0.1"})"};
}

void check_has(const std::string& text, const std::string& part) {
  if (text.find(part) == std::string::npos)
    fail_at(__FILE__, __LINE__, "expected \"", part, "\" in \"", text, "\"");
}

void pause_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

std::string reduce_until_failure(const Rank& rank) {
  const Tensor x = rank.device.empty({20000});
  rank.device.fill(x, 1);
  std::string first;
  while (first.empty()) first = message_of([&] { rank.wait(rank.communicator.all_reduce(x, {})); });
  return first + " | " + message_of([&] { rank.wait(rank.communicator.barrier()); });
}

}  // namespace

TEST("gloo: exact integers on 1 to 8 ranks, and 64 MiB") {
  const RanksOptions options = over_gloo();
  for (int size = 1; size <= 8; ++size) {
    const auto answers = in_processes(size, options, [](const Rank& rank) -> std::string {
      check_everything(rank, {0, 1, 57, 1009, rank.size <= 4 ? 100003 : 10007});
      if (rank.size == 2) check_all_reduce(rank, (64 << 20) / 4, DType::f32, CollectiveReduce::sum);
      return "good";
    });
    for (const std::string& answer : answers) CHECK_EQ(answer, "good");
  }
}

TEST("gloo: tensors of many pieces, and ranks that are threads") {
  on_threads(3, over_gloo(), [](const Rank& rank) {
    constexpr std::int64_t kCount = (10 << 20) / 4 + 5;
    check_all_reduce(rank, kCount, DType::f32, CollectiveReduce::sum);
    check_all_reduce(rank, 2 * kCount, DType::bf16, CollectiveReduce::max);
    check_reduce_scatter(rank, kCount / 2, DType::f32, CollectiveReduce::sum, true);
    check_broadcast(rank, kCount, DType::f16, 2);
    CHECK_EQ(rank.communicator.description(), "gloo over TCP, 3 ranks");
  });
}

TEST("gloo: sums are made in the pairwise tree, as everywhere") {
  const RanksOptions options = over_gloo();
  for (int size = 2; size <= 4; ++size) {
    on_threads(size, options, [](const Rank& rank) {
      for (const DType dtype : kDTypes)
        for (const std::int64_t count : {5, 3001}) check_tree(rank, dtype, count);
    });
  }
}

TEST("gloo: a killed rank is told at once") {
  const auto start = std::chrono::steady_clock::now();
  const auto answers =
      in_processes(3, over_gloo(50), reduce_until_failure, [](const std::vector<int>& processes) {
        pause_for(0.1);
        kill(processes[2], SIGKILL);
      });
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));
  // Who learns it first closes, so another may name that one.
  const bool named = answers[0].find("rank 2 is gone") != std::string::npos ||
                     answers[1].find("rank 2 is gone") != std::string::npos;
  if (!named) fail_at(__FILE__, __LINE__, "expected rank 2, got ", answers[0], " and ", answers[1]);
  for (const int rank : {0, 1}) {
    check_has(answers[static_cast<std::size_t>(rank)], "all_reduce ");
    check_has(answers[static_cast<std::size_t>(rank)], " is gone: ");
    check_has(answers[static_cast<std::size_t>(rank)], "| barrier ");
  }
}

TEST("gloo: a stopped rank is named at the deadline") {
  const auto answers =
      in_processes(2, over_gloo(0.5), reduce_until_failure, [](const std::vector<int>& processes) {
        pause_for(0.1);
        kill(processes[1], SIGSTOP);
        pause_for(1.5);
        kill(processes[1], SIGCONT);
      });
  check_has(answers[0], "rank 1 did not ");
  check_has(answers[0], "within 0.5 s");
}

TEST("gloo: abort ends what waits, here and there") {
  on_threads(2, over_gloo(), [](const Rank& rank) {
    rank.wait(rank.communicator.barrier());
    if (rank.rank == 1) {
      pause_for(0.1);
      rank.communicator.abort("enough");
      CHECK_EQ(message_of([&] { rank.wait(rank.communicator.barrier()); }), "barrier 2: aborted: enough");
    } else {
      const Event event = rank.communicator.barrier();
      check_has(message_of([&] { rank.wait(event); }), "barrier 2: rank 1 is gone: ");
      check_has(message_of([&] { rank.communicator.barrier(); }), "barrier 3: barrier 2: rank 1 is gone: ");
    }
  });
  on_threads(2, over_gloo(), [](const Rank& rank) {
    if (rank.rank == 1) return pause_for(0.3);
    const Event event = rank.communicator.barrier();
    pause_for(0.05);
    rank.communicator.abort("enough");
    CHECK_EQ(message_of([&] { rank.wait(event); }), "barrier 1: aborted: enough");
  });
}

TEST("gloo: calls that do not match are told apart") {
  on_threads(2, over_gloo(), [](const Rank& rank) {
    const Tensor x = rank.device.empty({rank.rank == 0 ? 5000 : 100000});
    const std::string told = message_of([&] { rank.wait(rank.communicator.all_reduce(x, {})); });
    check_has(told, "all_reduce 1 of 5000 f32 sum from rank 0");
    check_has(told, "all_reduce 1 of 100000 f32 sum from rank 1");
  });
}

TEST("gloo: connecting has a deadline, and offers are checked") {
  const RanksOptions gloo = over_gloo();
  const auto device = open_backend("cpu", 0, "{}");
  const auto make = [&](int rank) {
    return make_communicator_setup("gloo", device, {rank, 2, 0.3, gloo.engine_options});
  };
  const auto first = make(0), second = make(1);
  std::vector<std::string> offers = {first->offer(), second->offer()};
  const auto refused = [&](const std::vector<std::string>& changed, const std::string& told) {
    check_has(message_of([&] { first->connect(changed); }), told);
  };
  refused({offers[0]}, "expected 2 offers, got 1");
  refused({offers[0], ""}, "rank 1: expected an offer of gloo");
  refused({offers[0], offers[1].substr(0, 40)}, "rank 1: expected an offer of gloo");
  refused({offers[1], offers[0]}, "rank 0: expected the offer of rank 0 of 2");
  refused(offers, "rank 1 did not connect within 0.3 s");
  CHECK_THROWS("ERR_OPTION", make_communicator_setup("gloo", device, {0, 2, 1, R"({"port": 1})"}));
  check_has(message_of([&] {
              make_communicator_setup("gloo", device, {0, 2, 1, R"({"interface": "none0"})"});
            }),
            "expected a network interface of this host, got none0");
}
