// Optimizer state that some ranks write and others read.
#include "io/safetensors.h"
#include "sync_model.h"
#include "temporary.h"

namespace danceflux::test {
namespace {

using train::Sharding;

std::string shard_name(const TemporaryFolder& folder, int rank) {
  return folder.path("shard" + std::to_string(rank));
}

/// Trains `updates` updates from the state in `from` (none: from the start), and saves all shares.
Weights continued(int ranks, const Plan& plan, int first, const std::vector<std::string>& from,
                  const TemporaryFolder& folder) {
  Weights weights;
  on_ranks(ranks, [&](ThreadWorld&, int rank, const auto& communicator, const auto& device) {
    RankRun run(plan, communicator, device);
    if (!from.empty()) {
      for (const auto& named : run.model.named_parameters()) ops::fill_(named.value(), 7);
      run.optimizer->load(from);
      CHECK_EQ(run.optimizer->steps(), first);
    }
    for (int i = first; i < first + plan.updates; ++i) run.update(i);
    if (plan.ema > 0) {  // there and back again
      const Weights plain = run.weights();
      run.optimizer->swap_average();
      CHECK(!Outcome::same(run.weights(), plain));
      CHECK_THROWS("ERR_OPTION", run.optimizer->save(folder.path("swapped")));
      run.optimizer->swap_average();
      CHECK(Outcome::same(run.weights(), plain));
    }
    run.optimizer->save(shard_name(folder, rank));
    if (rank == 0) weights = run.weights();
  });
  return weights;
}

std::vector<std::string> shards(const TemporaryFolder& folder, int ranks) {
  std::vector<std::string> paths;
  for (int rank = 0; rank < ranks; ++rank) paths.push_back(shard_name(folder, rank));
  return paths;
}

TEST("optimizer: state that 4 ranks wrote goes on, bit for bit, on 1, 2, 3 and 4") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Plan plan;
    plan.dtype = dtype;
    plan.ordered = true;
    plan.samples = 12;
    plan.passes = 1;
    plan.ema = 0.9f;
    plan.updates = 4;
    const TemporaryFolder whole_folder, folder, later;
    const Weights wanted = continued(4, plan, 0, {}, whole_folder);
    plan.updates = 2;
    plan.sharding = Sharding::optimizer;
    continued(4, plan, 0, {}, folder);
    for (const int ranks : {1, 2, 4}) {
      for (const Sharding sharding : {Sharding::none, Sharding::optimizer, Sharding::gradients}) {
        plan.sharding = sharding;
        CHECK(Outcome::same(continued(ranks, plan, 2, shards(folder, 4), later), wanted));
      }
    }
    plan.updates = 1;
    plan.sharding = Sharding::optimizer;
    continued(3, plan, 2, shards(folder, 4), later);  // its sums go another way, but it goes on
  }
}

TEST("optimizer: a file of whole parameters is read in shares") {
  Plan plan;
  plan.ordered = true;
  plan.updates = 2;
  const TemporaryFolder folder, later;
  const Weights unsharded = continued(1, plan, 0, {}, folder);
  const auto file = io::open_tensor_file(shard_name(folder, 0));
  for (const io::FileTensor& tensor : file->tensors()) CHECK(tensor.name.find('@') == std::string::npos);
  plan.updates = 0;
  plan.sharding = Sharding::optimizer;
  CHECK(Outcome::same(continued(4, plan, 2, shards(folder, 1), later), unsharded));
  // And back: what the four wrote is the same state.
  plan.sharding = Sharding::none;
  const TemporaryFolder again;
  continued(1, plan, 2, shards(later, 4), again);
  CHECK(read_bytes(shard_name(again, 0)) == read_bytes(shard_name(folder, 0)));
}

TEST("optimizer: shares that do not make a whole are refused") {
  Plan plan;
  plan.ordered = true;
  plan.updates = 1;
  plan.sharding = Sharding::optimizer;
  const TemporaryFolder folder, other;
  continued(4, plan, 0, {}, folder);
  plan.updates = 2;
  continued(4, plan, 0, {}, other);
  const auto device = cpu_device(1);
  RankRun run(plan, nullptr, device);
  const Weights before = run.weights();
  const auto refused = [&](const std::vector<std::string>& paths, const char* part) {
    const Error error = error_of([&] { run.optimizer->load(paths); });
    CHECK_EQ(error.code, std::string("ERR_CHECKPOINT"));
    check_told(error, part);
    CHECK(Outcome::same(run.weights(), before));
  };
  auto paths = shards(folder, 4);
  const auto without = [&](std::size_t i) {
    auto some = paths;
    some.erase(some.begin() + static_cast<std::ptrdiff_t>(i));
    return some;
  };
  refused(without(0), "missing");
  refused(without(1), "missing");
  refused({}, "at least one file");
  auto twice = paths;
  twice.push_back(paths[0]);
  refused(twice, "too many");
  auto mixed = paths;
  mixed[1] = shard_name(other, 1);
  refused(mixed, "expected state after 1 steps");
  for (const char* name : {"norm.weight.m@9223372036854775807", "norm.weight.m@-1", "norm.weight.m@x"}) {
    const std::string sly = other.path("sly");
    const auto fill = [](std::byte* to) { std::memset(to, 0, 2 * sizeof(float)); };
    io::write_safetensors(sly, {{name, DType::f32, {2}, fill}}, {{"danceflux.optimizer.steps", "1"}});
    refused({sly}, "begins at an element");
  }
  run.optimizer->load(paths);
  CHECK(!Outcome::same(run.weights(), before));
}

}  // namespace
}  // namespace danceflux::test
