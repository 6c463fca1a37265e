// Data-parallel training on ranks that are threads: the bits that must be equal, what may not be held, what
// must have begun in time.
#include <limits>

#include "ranks.h"
#include "sync_model.h"

namespace danceflux::test {
namespace {

using train::Sharding;
constexpr Sharding kShardings[] = {Sharding::none, Sharding::optimizer, Sharding::gradients};

void check_same(const std::string& what, const Outcome& got, const Outcome& wanted) {
  if (!(got == wanted)) fail_at(__FILE__, __LINE__, what, ": other weights");
  for (const auto& reports : got.reports) {
    for (std::size_t i = 0; i < reports.size(); ++i) {
      CHECK_EQ(reports[i].gradient_norm, wanted.reports[0][i].gradient_norm);
      CHECK_EQ(reports[i].skipped, wanted.reports[0][i].skipped);
    }
  }
}

std::string told(int ranks, Sharding sharding) {
  return std::to_string(ranks) + " ranks, sharding " + std::to_string(static_cast<int>(sharding));
}

TEST("sync: every sharding gives the same bits at any number of ranks") {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int ranks : {1, 2, 3, 4}) {
      // One pass per rank and update, or several; then only ordered sums go the same way with shed gradients.
      for (const bool single : {true, false}) {
        Plan plan;
        plan.dtype = dtype;
        plan.samples = single ? ranks : 2 * ranks;
        plan.passes = single ? 1 : 2;
        plan.ema = 0.9f;
        const Outcome wanted = trained(ranks, plan);
        for (const Sharding sharding : kShardings) {
          if (sharding == Sharding::gradients && !single) continue;
          plan.sharding = sharding;
          check_same(told(ranks, sharding), trained(ranks, plan), wanted);
        }
      }
    }
  }
}

TEST("sync: ordered sums give the same bits on 1, 2 and 4 ranks, however state is sharded") {
  for (const int samples : {4, 8, 12}) {
    for (const bool checkpointed : {false, true}) {
      Plan plan;
      plan.samples = samples;
      plan.ordered = true;
      plan.checkpointed = checkpointed;
      plan.dtype = checkpointed ? DType::bf16 : DType::f32;
      const Outcome wanted = trained(0, plan);
      for (const int ranks : {1, 2, 4}) {
        for (const Sharding sharding : kShardings) {
          plan.sharding = sharding;
          check_same(told(ranks, sharding), trained(ranks, plan), wanted);
        }
      }
    }
  }
}

TEST("sync: the shared-memory engine gives the bits of the ranks in threads") {
  Plan plan;
  plan.ordered = true;
  const Outcome wanted = trained(0, plan);
  for (const Sharding sharding : kShardings) {
    plan.sharding = sharding;
    on_threads(4, {}, [&](const Rank& rank) {
      const std::shared_ptr<Communicator> borrowed(&rank.communicator, [](Communicator*) {});
      const auto device = std::static_pointer_cast<Backend>(rank.device.shared_from_this());
      RankRun run(plan, borrowed, device);
      for (int i = 0; i < plan.updates; ++i) run.update(i);
      CHECK(Outcome::same(run.weights(), wanted.weights));
    });
  }
}

TEST("sync: sums that are not ordered do depend on the number of ranks") {
  Plan plan;
  plan.samples = 8;
  const Outcome one = trained(1, plan);
  CHECK(!(trained(4, plan) == one));  // or the test above would show nothing
  plan.ordered = true;
  CHECK(!(trained(1, plan) == one));
}

TEST("sync: shed gradients of several passes are the same sum, in another order") {
  Plan plan;
  plan.samples = 4;
  plan.updates = 1;
  const Outcome wanted = trained(2, plan);
  plan.sharding = Sharding::gradients;
  const Outcome got = trained(2, plan);
  CHECK_NEAR(got.reports[0][0].gradient_norm, wanted.reports[0][0].gradient_norm,
             1e-6 * wanted.reports[0][0].gradient_norm);
  CHECK_EQ(got.reports[0][0].sync.collectives, 4 * wanted.reports[0][0].sync.collectives);
}

TEST("sync: one rank without a communicator is as one with") {
  Plan plan;
  for (const bool ordered : {false, true}) {
    plan.ordered = ordered;
    check_same("no communicator", trained(1, plan), trained(0, plan));
  }
}

TEST("sync: buckets travel before backward has ended, and at the step when told so") {
  on_ranks(2, [](ThreadWorld& world, int rank, const auto& communicator, const auto& device) {
    for (const Sharding sharding : kShardings) {
      for (const bool overlap : {true, false}) {
        Plan plan;
        plan.sharding = sharding;
        plan.overlap = overlap;
        plan.checkpointed = true;
        RankRun run(plan, communicator, device);
        const std::size_t buckets = run.sync->layout().buckets.size();
        CHECK(buckets >= 3);
        std::size_t before = world.calls(rank), at_first_layer = 0;
        const auto probe = [&] { at_first_layer = world.calls(rank) - before; };
        run.backward(0, rank, 0, {}, probe);  // not the last one: nothing but shed gradients travels
        const bool sheds = sharding == Sharding::gradients;
        CHECK_EQ(world.calls(rank) - before, overlap && sheds ? buckets : 0);
        before = world.calls(rank);
        run.backward(0, rank, 1, {true, true, 1}, probe);
        CHECK_EQ(world.calls(rank) - before, overlap ? buckets : 0);
        CHECK(overlap ? at_first_layer >= 2 && at_first_layer < buckets : at_first_layer == 0);
        const train::SyncReport report = run.optimizer->step(0.1f, 1).sync;
        const int passes = overlap && sheds ? 2 : 1;
        CHECK_EQ(report.collectives, passes * static_cast<int>(buckets));
        CHECK_EQ(report.overlapped, overlap ? passes * static_cast<int>(buckets - 1) : 0);
        CHECK(report.bytes > 0);
        CHECK(report.seconds_in_flight >= 0 && report.seconds_waited >= 0);
      }
    }
  });
}

TEST("sync: gradients are clipped by the norm over all ranks") {
  // What one rank with all samples sees, in doubles.
  Plan plan;
  plan.samples = 4;
  plan.updates = 1;
  plan.ordered = true;
  const auto device = cpu_device(1);
  RankRun whole(plan, nullptr, device);
  for (int sample = 0; sample < 4; ++sample) {
    for (int pass = 0; pass < 2; ++pass) whole.backward(0, sample, pass, {false, pass == 1, 4});
  }
  double squares = 0;
  for (const auto& named : whole.model.trainable_parameters()) {
    for (const double g : ops::to_host(named.gradient())) squares += g * g;
  }
  const double norm = std::sqrt(squares);
  for (const Sharding sharding : kShardings) {
    plan.sharding = sharding;
    plan.clip = static_cast<float>(norm / 10);
    const Outcome clipped = trained(4, plan);
    plan.clip = static_cast<float>(norm * 10);
    const Outcome free = trained(4, plan);
    for (const auto& reports : clipped.reports) CHECK_NEAR(reports[0].gradient_norm, norm, 1e-6 * norm);
    CHECK(!(clipped == free));
  }
}

TEST("sync: a number that is not finite on one rank skips the step on all") {
  const float inf = std::numeric_limits<float>::infinity();
  for (const Sharding sharding : kShardings) {
    for (const float bad : {std::nanf(""), inf}) {
      Plan plan;
      plan.sharding = sharding;
      plan.ordered = true;
      plan.updates = 3;
      plan.spoil = [bad](int rank, int update, int, std::vector<float>& seed) {
        if (rank == 1 && update == 1) seed[7] = bad;
      };
      const Outcome outcome = trained(4, plan);
      for (const auto& reports : outcome.reports) {
        CHECK(!reports[0].skipped && reports[1].skipped && !reports[2].skipped);
        CHECK_EQ(reports[2].step, 2);
      }
      for (const auto& [name, values] : outcome.weights) {
        for (const float value : values) CHECK(std::isfinite(value));
      }
    }
  }
}

TEST("sync: parts that do not train neither move nor count") {
  Plan plan;
  plan.ordered = true;
  plan.trainable = [](const std::string& name) {
    return name.find(".k.") != std::string::npos || name == "layers.1.v.weight";
  };
  const Weights before = [&] {
    const auto device = cpu_device(1);
    return RankRun(plan, nullptr, device).weights();
  }();
  const Outcome wanted = trained(0, plan);
  for (const auto& [name, values] : wanted.weights)
    CHECK_EQ(values == before.at(name), !plan.trainable(name));
  for (const int ranks : {2, 4}) {
    for (const Sharding sharding : kShardings) {
      plan.sharding = sharding;
      check_same(told(ranks, sharding), trained(ranks, plan), wanted);
    }
  }
}

TEST("sync: what a rank holds shrinks with the number of ranks") {
  Plan plan;
  plan.updates = 2;
  plan.depth = 40;
  plan.samples = 4;
  plan.ema = 0.9f;
  plan.dtype = DType::bf16;
  plan.bucket_bytes = 32000;  // five matrices, which nearly fill four shards
  const auto held = [&](Sharding sharding) {
    plan.sharding = sharding;
    std::pair<std::size_t, std::size_t> most;
    for (const auto& reports : trained(4, plan).reports) {
      most.first = std::max(most.first, reports[1].state_bytes);
      most.second = std::max(most.second, reports[1].sync.gradient_bytes);
    }
    return most;
  };
  const auto [state, gradients] = held(Sharding::none);
  const auto [state1, gradients1] = held(Sharding::optimizer);
  const auto [state2, gradients2] = held(Sharding::gradients);
  const std::size_t parameters = 40 * kWidth * (kWidth + 1) + kWidth;
  CHECK(state >= 3 * parameters * sizeof(float));  // m, v and average; masters where values are bf16
  CHECK(state1 < state * 2 / 5 && state2 == state1);
  CHECK_EQ(gradients1, gradients);
  CHECK(gradients >= parameters * sizeof(float));
  CHECK(gradients2 < gradients * 3 / 4);  // a quarter, and three buckets of nine under way
}

TEST("sync: the shares of all ranks are a whole, about equal") {
  const auto device = cpu_device(1);
  SmallModel model(*device, DType::f32, 12);
  for (const int ranks : {1, 2, 3, 4, 7}) {
    const auto layout = train::GradientLayout::of(model, 1 << 20, ranks);
    std::map<std::string, std::int64_t> place;
    std::int64_t most = 0, all = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      std::int64_t own = 0;
      for (const train::TrainedRange& range : train::ranges_of_shard(layout, rank, ranks)) {
        const std::string& name = layout.parts[range.part].name;
        CHECK_EQ(place[name], range.begin);
        place[name] = range.end;
        own += range.end - range.begin;
      }
      most = std::max(most, own);
      all += own;
    }
    for (const train::TrainedPart& part : layout.parts) CHECK_EQ(place[part.name], part.count);
    CHECK(most <= all / ranks + train::kNormChunk);
  }
}

TEST("sync: what cannot be is told") {
  CHECK(train::sharding_from_name("optimizer+gradients") == Sharding::gradients);
  CHECK_THROWS("ERR_OPTION", train::sharding_from_name("zero"));
  const auto device = cpu_device(1);
  Plan plan;
  plan.ordered = true;
  RankRun run(plan, nullptr, device);
  run.backward(0, 0, 0, {false, true, 2});
  CHECK_THROWS("ERR_OPTION", run.optimizer->step(0.1f, 1));  // in the middle of an update
  CHECK_THROWS("ERR_OPTION", run.backward(0, 1, 0, {false, true, 3}));
  run.model.zero_gradients();  // drops it
  run.backward(0, 0, 0, {true, true, 1});
  CHECK_THROWS("ERR_OPTION", run.backward(0, 1, 0, {}));  // after the last
  CHECK_EQ(run.optimizer->step(0.1f, 1).step, 1);
  run.model.set_trainable([](const std::string&) { return false; });
  CHECK_THROWS("ERR_OPTION", train::GradientSync::attach(run.model, {}));
}

TEST("sync: a rank that fails takes the others with it") {
  const auto attempt = [](ThreadWorld& world, int rank, const auto& communicator, const auto& device) {
    Plan plan;
    RankRun run(plan, communicator, device);
    if (rank == 1) return world.abort("rank 1 went away");
    run.update(0);
  };
  CHECK_THROWS("ERR_COMMUNICATION", on_ranks(2, attempt));
}

}  // namespace
}  // namespace danceflux::test
