// What ranks are told when something goes wrong: who is missing, in which call, and why.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "backend/cpu/shared_segment.h"
#include "backend/registry.h"
#include "core/error.h"
#include "harness.h"
#include "ranks.h"
#include "temporary.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

void check_has(const std::string& text, const std::string& part) {
  if (text.find(part) == std::string::npos)
    fail_at(__FILE__, __LINE__, "expected \"", part, "\" in \"", text, "\"");
}

void pause_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

/// All-reduces until it fails; the answer is the failure, and how the next call fails.
std::string reduce_until_failure(const Rank& rank, int rounds) {
  const Tensor x = rank.device.empty({20000});
  rank.device.fill(x, 1);
  std::string first;
  for (int round = 0; round < rounds && first.empty(); ++round)
    first = message_of([&] { rank.wait(rank.communicator.all_reduce(x, {})); });
  return first + " | " + message_of([&] { rank.wait(rank.communicator.barrier()); });
}

std::vector<CommunicatorOptions> two(const std::string& options, double seconds = 60) {
  return {{0, 2, seconds, options}, {1, 2, seconds, options}};
}

/// Setups of two ranks and their offers.
struct TwoSetups {
  explicit TwoSetups(const std::string& options = "{}", double seconds = 60)
      : device(open_backend("cpu", 0, R"({"threads": 1})")) {
    for (const CommunicatorOptions& each : two(options, seconds)) {
      setups.push_back(make_communicator_setup("shared-memory", device, each));
      offers.push_back(setups.back()->offer());
    }
  }
  std::string refusal(int rank) {
    return message_of([&] { setups[static_cast<std::size_t>(rank)]->connect(offers); });
  }
  std::shared_ptr<Backend> device;
  std::vector<std::unique_ptr<CommunicatorSetup>> setups;
  std::vector<std::string> offers;
};

/// Writes over a file in a folder that has only that one.
void damage(const TemporaryFolder& folder, off_t offset, const std::string& bytes) {
  const std::vector<std::string> names = folder.names();
  CHECK_EQ(names.size(), std::size_t{1});
  const int file = open(folder.path(names[0]).c_str(), O_WRONLY);
  CHECK(file >= 0 && pwrite(file, bytes.data(), bytes.size(), offset) == static_cast<ssize_t>(bytes.size()));
  close(file);
}

}  // namespace

TEST("communicator failures: a rank that does not arrive is named at the deadline") {
  on_threads(3, {.timeout_seconds = 0.3}, [](const Rank& rank) {
    const Tensor x = rank.device.empty({100});
    rank.device.fill(x, 1);
    rank.wait(rank.communicator.all_reduce(x, {}));
    if (rank.rank == 2) return pause_for(1);
    const std::string told = message_of([&] { rank.wait(rank.communicator.all_reduce(x, {})); });
    CHECK_EQ(told.substr(0, 14), "all_reduce 2: ");
    check_has(told, "rank 2 did not arrive within 0.3 s");
    const std::string next = message_of([&] { rank.wait(rank.communicator.barrier()); });
    CHECK_EQ(next.substr(0, 11), "barrier 3: ");
    check_has(next, "rank 2 did not arrive within 0.3 s");
  });
}

TEST("communicator failures: a killed rank is told at once") {
  const auto start = std::chrono::steady_clock::now();
  const auto answers = in_processes(
      4, {.timeout_seconds = 50}, [](const Rank& rank) { return reduce_until_failure(rank, 1 << 30); },
      [](const std::vector<int>& processes) {
        pause_for(0.1);
        kill(processes[2], SIGKILL);
      });
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(30));
  CHECK_EQ(answers[2], "");
  for (const int rank : {0, 1, 3}) {
    check_has(answers[static_cast<std::size_t>(rank)], "all_reduce ");
    check_has(answers[static_cast<std::size_t>(rank)], "rank 2 is gone: process ");
    check_has(answers[static_cast<std::size_t>(rank)], "| barrier ");
  }
}

TEST("communicator failures: a stopped rank is told at the deadline") {
  const auto answers = in_processes(
      3, {.timeout_seconds = 0.5}, [](const Rank& rank) { return reduce_until_failure(rank, 1 << 30); },
      [](const std::vector<int>& processes) {
        pause_for(0.1);
        kill(processes[1], SIGSTOP);
        pause_for(1.5);
        kill(processes[1], SIGCONT);
      });
  for (const int rank : {0, 2}) {
    check_has(answers[static_cast<std::size_t>(rank)], "rank 1 did not ");
    check_has(answers[static_cast<std::size_t>(rank)], "within 0.5 s");
  }
  check_has(answers[1], " aborted: all_reduce ");  // when it wakes, it learns what the others decided
}

TEST("communicator failures: a rank that left in peace is not waited for") {
  on_threads(2, {}, [](const Rank& rank) {
    rank.wait(rank.communicator.barrier());
    if (rank.rank == 1) return;
    const std::string told = message_of([&] { rank.wait(rank.communicator.barrier()); });
    CHECK_EQ(told, "barrier 2: rank 1 has left");
  });
}

TEST("communicator failures: abort ends what waits on every rank") {
  on_threads(3, {}, [](const Rank& rank) {
    rank.wait(rank.communicator.barrier());
    if (rank.rank == 1) {
      pause_for(0.1);
      rank.communicator.abort("the user has seen enough");
      rank.communicator.abort("twice is once");
    }
    const std::string told = message_of([&] { rank.wait(rank.communicator.barrier()); });
    CHECK_EQ(told, rank.rank == 1 ? "barrier 2: aborted: the user has seen enough"
                                  : "barrier 2: rank 1 aborted: the user has seen enough");
  });
}

TEST("communicator failures: closing ends a call that is under way") {
  on_threads(2, {}, [](const Rank& rank) {
    if (rank.rank == 1) return pause_for(0.2);
    const Event event = rank.communicator.barrier();
    pause_for(0.05);
    rank.communicator.abort("closing");
    check_has(message_of([&] { rank.wait(event); }), "aborted: closing");
  });
  TwoSetups both;
  std::unique_ptr<Communicator> first, second;
  std::thread other([&] { second = both.setups[1]->connect(both.offers); });
  first = both.setups[0]->connect(both.offers);
  other.join();
  const Event event = first->barrier(), later = first->barrier();
  pause_for(0.05);
  first.reset();
  check_has(message_of([&] { both.device->wait(event); }), "the communicator was closed");
  check_has(message_of([&] { both.device->wait(later); }), "the communicator was closed");
  check_has(message_of([&] { both.device->wait(second->barrier()); }),
            "rank 0 aborted: the communicator was closed");
}

TEST("communicator failures: calls that do not match are told apart") {
  const auto differ = [](const std::function<Event(const Rank&)>& call, const std::string& ours,
                         const std::string& theirs) {
    on_threads(2, {}, [&](const Rank& rank) {
      rank.wait(rank.communicator.barrier());
      const std::string told = message_of([&] { rank.wait(call(rank)); });
      check_has(told, "expected one call of all ranks, got ");
      check_has(told, ours);
      check_has(told, theirs);
    });
  };
  differ(
      [](const Rank& rank) {
        const Tensor x = rank.device.empty({rank.rank == 0 ? 5000 : 100000});
        return rank.communicator.all_reduce(x, {});
      },
      "all_reduce 2 of 5000 f32 sum from rank 0", "all_reduce 2 of 100000 f32 sum from rank 1");
  differ(
      [](const Rank& rank) {
        const Tensor x = rank.device.empty({10}, rank.rank == 0 ? DType::bf16 : DType::f16);
        return rank.communicator.all_reduce(x, {CollectiveReduce::max, false});
      },
      "all_reduce 2 of 10 bf16 max from rank 0", "all_reduce 2 of 10 f16 max from rank 1");
  differ(
      [](const Rank& rank) {
        const Tensor x = rank.device.empty({10});
        return rank.rank == 0 ? rank.communicator.broadcast(x, 0) : rank.communicator.barrier();
      },
      "broadcast 2 of 10 f32 from rank 0", "barrier 2 from rank 1");
  differ(
      [](const Rank& rank) {
        const Tensor x = rank.device.empty({10});
        return rank.communicator.broadcast(x, rank.rank);
      },
      "broadcast 2 of 10 f32 from rank 0", "broadcast 2 of 10 f32 from rank 1");
}

TEST("communicator segment: in a folder, private, and gone after connect") {
  const TemporaryFolder folder;
  const std::string options = R"({"slotKiB": 64, "folder": ")" + folder.path() + "\"}";
  {
    TwoSetups both(options);
    const std::vector<std::string> names = folder.names();
    CHECK_EQ(names.size(), std::size_t{1});
    struct stat status {};
    CHECK(stat(folder.path(names[0]).c_str(), &status) == 0 && (status.st_mode & 0777) == 0600);
    CHECK(status.st_size < 1 << 20);
  }
  CHECK(folder.names().empty());  // nobody connected: it goes with the setup
  on_threads(2, {.engine_options = options}, [&](const Rank& rank) {
    rank.wait(rank.communicator.barrier());
    CHECK(folder.names().empty());
  });
}

TEST("communicator segment: a hostile header or file is refused") {
  const TemporaryFolder folder;
  const std::string options = R"({"folder": ")" + folder.path() + "\"}";
  const auto header = [](std::size_t offset) { return static_cast<off_t>(offset); };
  const auto refused = [&](off_t offset, const std::string& bytes, const std::string& told) {
    TwoSetups both(options, 0.2);
    damage(folder, offset, bytes);
    check_has(both.refusal(1), told);
  };
  using Header = cpu::SegmentHeader;
  refused(0, "nonsense", "expected a danceflux segment");
  refused(header(offsetof(Header, version)), "zzzz", "expected a segment of version 3");
  refused(header(offsetof(Header, ranks)), std::string("\xff\xff\xff\x7f", 4),
          "expected a segment for 2 ranks");
  refused(header(offsetof(Header, slot_bytes)), std::string(8, '\xff'), "expected a segment for 2 ranks");
  refused(header(offsetof(Header, nonce)), "x", "another run's");
  {
    TwoSetups both(options, 0.2);
    CHECK(truncate(folder.path(folder.names()[0]).c_str(), 100) == 0);
    check_has(both.refusal(1), "bytes, got 100");
  }
  {
    TwoSetups both(options, 0.2);
    CHECK(chmod(folder.path(folder.names()[0]).c_str(), 0666) == 0);
    check_has(both.refusal(1), "a public one");
  }
  {
    TwoSetups both(options, 0.2);
    const std::string name = folder.names()[0];
    CHECK(unlink(folder.path(name).c_str()) == 0);
    CHECK(symlink("/etc/passwd", folder.path(name).c_str()) == 0);
    check_has(both.refusal(1), "cannot open");
  }
}

TEST("communicator offers: whatever comes from the network is refused in words") {
  const auto refused = [](const std::function<void(std::vector<std::string>&)>& change,
                          const std::string& told) {
    TwoSetups both("{}", 0.2);
    change(both.offers);
    check_has(both.refusal(1), told);
  };
  refused([](auto& offers) { offers.pop_back(); }, "expected 2 offers, got 1");
  refused([](auto& offers) { offers[0].clear(); }, "rank 0: expected an offer of shared memory");
  refused([](auto& offers) { offers[0].resize(65536); }, "rank 0: expected an offer of shared memory");
  refused([](auto& offers) { offers[0][0] ^= 1; }, "rank 0: expected an offer of shared memory");
  refused([](auto& offers) { std::swap(offers[0], offers[1]); }, "expected the offer of rank 1 of 2");
  refused([](auto& offers) { offers[0][20] ^= 64; }, "expected slotKiB 256 on all ranks");
  refused([](auto& offers) { offers[0][24] ^= 1; }, "runs on another host");
  // A process and descriptor that are not the segment: this process's standard input, and no process at all.
  const auto place = [](std::uint32_t process, std::uint32_t descriptor) {
    return [=](std::vector<std::string>& offers) {
      std::memcpy(offers[0].data() + 64, &process, 4);
      std::memcpy(offers[0].data() + 68, &descriptor, 4);
    };
  };
  refused(place(static_cast<std::uint32_t>(getpid()), 0), "is not rank 0");
  refused(place(0xfffffff0u, 3), "cannot see the segment of rank 0");
  for (std::size_t byte = 0; byte < 96; ++byte) {
    TwoSetups both("{}", 0.02);
    both.offers[0][byte] ^= 0x55;
    CHECK(!both.refusal(1).empty());
  }
}

TEST("communicator offers: ranks that differ in options, and a rank that is there twice") {
  const auto device = open_backend("cpu", 0, "{}");
  const auto make = [&](int rank, const char* options) {
    return make_communicator_setup("shared-memory", device, {rank, 2, 0.2, options});
  };
  const auto first = make(0, "{}"), second = make(1, R"({"slotKiB": 128})"), twin = make(1, "{}");
  std::vector<std::string> offers = {first->offer(), second->offer()};
  check_has(message_of([&] { first->connect(offers); }),
            "rank 1: expected slotKiB 256 on all ranks, got 128");
  offers[1] = twin->offer();
  const auto again = make(1, "{}");
  std::string one, other;
  std::thread thread([&] { one = message_of([&] { twin->connect(offers); }); });
  other = message_of([&] { again->connect(offers); });
  thread.join();
  check_has(one + other, "expected one rank 1, got another in process ");
}
