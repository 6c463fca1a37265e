// danceflux_collectives_bench ENGINE RANKS OPTIONS BYTES...: all-reduce of f32 between processes. One line of
// JSON per size: bytes, mean milliseconds per call, wrong elements.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "collective_checks.h"
#include "harness.h"
#include "ranks.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

/// About 0.2 s of work at 1 GB/s, and a few hundred calls of the smallest.
int repeats(std::int64_t bytes) {
  return static_cast<int>(std::max<std::int64_t>(4, std::min<std::int64_t>(500, (200 << 20) / (bytes + 1))));
}

std::string measure(const Rank& rank, const std::vector<std::int64_t>& sizes) {
  std::ostringstream lines;
  for (const std::int64_t bytes : sizes) {
    const std::int64_t count = bytes / 4;
    const Tensor x = rank.device.empty({count});
    const std::vector<float> mine = numbers(count, rank.rank);
    rank.device.upload(x, mine.data());
    rank.wait(rank.communicator.all_reduce(x, {}));
    const std::vector<float> wanted = reduced(count, rank.size, CollectiveReduce::sum);
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < count; ++i)
      wrong += x.data<float>()[i] != wanted[static_cast<std::size_t>(i)];
    rank.device.fill(x, 0);
    rank.wait(rank.communicator.all_reduce(x, {}));
    rank.wait(rank.communicator.barrier());
    const int calls = repeats(bytes);
    const auto start = std::chrono::steady_clock::now();
    for (int call = 0; call < calls; ++call) rank.wait(rank.communicator.all_reduce(x, {}));
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    lines << "{\"bytes\": " << bytes << ", \"ms\": " << time.count() / calls << ", \"wrong\": " << wrong
          << "}\n";
  }
  return lines.str();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: danceflux_collectives_bench ENGINE RANKS OPTIONS BYTES...\n");
    return 2;
  }
  std::vector<std::int64_t> sizes;
  for (int i = 4; i < argc; ++i) sizes.push_back(std::atoll(argv[i]));
  try {
    const auto answers = in_processes(std::atoi(argv[2]), {argv[1], 60, argv[3]},
                                      [&](const Rank& rank) { return measure(rank, sizes); });
    std::fputs(answers[0].c_str(), stdout);
    return answers[0].rfind("threw ", 0) == 0 ? 1 : 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
