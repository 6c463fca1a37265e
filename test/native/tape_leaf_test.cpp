// Leaves whose gradients somebody else keeps: memory is asked for when it is needed, and the last
// contribution is told when it came, not later.
#include <algorithm>

#include "autograd/tape.h"
#include "harness.h"
#include "op_readers.h"
#include "ops/ops.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

Tensor random(Backend& device, const Shape& shape, const std::string& seed) {
  return ops::from_host(device, shape, normal_stream(seed, shape.numel()));
}

/// Leaves by name, with what was asked and told of them, in order.
struct Kept {
  explicit Kept(Backend& on) : device(on) {}
  void watch(Tape& tape, const std::string& name, const Tensor& leaf) {
    const auto into = [this, name, leaf] {
      events.push_back("into " + name);
      sums[name] = ops::full(device, leaf.shape(), 0);
      return sums[name];
    };
    const auto finished = [this, name] {
      events.push_back("finished " + name);
      if (sums.contains(name)) seen[name] = values_of(sums[name]);
    };
    tape.watch(leaf, {into, finished});
  }
  std::size_t place(const std::string& event) const {
    const auto found = std::find(events.begin(), events.end(), event);
    CHECK(found != events.end());
    CHECK_EQ(std::count(events.begin(), events.end(), event), 1);
    return static_cast<std::size_t>(found - events.begin());
  }

  Backend& device;
  std::vector<std::string> events;
  std::map<std::string, Tensor> sums;
  std::map<std::string, std::vector<double>> seen;  // the sums when they were told to be whole
};

/// y = silu(silu(x a) b) b, each layer a block; b is read twice.
Tensor chain(const Tensor& x, const Tensor& a, const Tensor& b, bool checkpointed) {
  Tensor y = x;
  for (const Tensor* weight : {&a, &b, &b}) {
    const Block block = [weight](std::span<const Tensor> in) {
      return std::vector<Tensor>{ops::silu(ops::linear(in[0], *weight, {}))};
    };
    y = checkpointed ? checkpoint(block, {y})[0] : block({&y, 1})[0];
  }
  return y;
}

TEST("tape: a kept leaf is told after its last contribution, before earlier layers") {
  const auto device = std::make_shared<ReferenceBackend>();
  const Tensor x = random(*device, {3, 4}, "x"), a = random(*device, {4, 4}, "a"),
               b = random(*device, {4, 4}, "b"), seed = random(*device, {3, 4}, "seed");
  Tape plain;
  plain.watch(a);
  plain.watch(b);
  plain.backward(chain(x, a, b, false), seed);
  const auto wanted_a = values_of(plain.gradient(a)), wanted_b = values_of(plain.gradient(b));
  for (const bool checkpointed : {false, true}) {
    Kept kept(*device);
    Tape tape;
    kept.watch(tape, "a", a);
    kept.watch(tape, "b", b);
    const Tensor y = chain(x, a, b, checkpointed);
    CHECK(kept.events.empty());  // nothing before backward
    tape.backward(y, seed);
    const std::vector<std::string> wanted{"into b", "finished b", "into a", "finished a"};
    CHECK(kept.events == wanted);
    CHECK(kept.seen["a"] == wanted_a);
    CHECK(kept.seen["b"] == wanted_b);
  }
}

TEST("tape: a kept leaf inside nested checkpoints is told when the outermost has run again") {
  const auto device = std::make_shared<ReferenceBackend>();
  const Tensor x = random(*device, {3, 4}, "x"), a = random(*device, {4, 4}, "a"),
               b = random(*device, {4, 4}, "b");
  Kept kept(*device);
  Tape tape;
  tape.watch(x);
  kept.watch(tape, "a", a);
  kept.watch(tape, "b", b);
  const Block inner = [&](std::span<const Tensor> in) {
    return std::vector<Tensor>{ops::silu(ops::linear(in[0], a, {}))};
  };
  const Block outer = [&](std::span<const Tensor> in) {
    return std::vector<Tensor>{ops::linear(checkpoint(inner, {in[0]})[0], b, {})};
  };
  const Tensor first = ops::linear(x, a, {});  // an earlier use, outside
  const Tensor y = checkpoint(outer, {first})[0];
  tape.backward(y, ops::full(*device, y.shape(), 1));
  CHECK(kept.place("finished b") < kept.place("finished a"));
  CHECK(kept.seen["a"] == values_of(kept.sums["a"]));
  CHECK(kept.seen["b"] == values_of(kept.sums["b"]));
}

TEST("tape: kept leaves that nothing reads, or nothing flows to, are told too") {
  const auto device = std::make_shared<ReferenceBackend>();
  const Tensor x = random(*device, {3}, "x"), used = random(*device, {3}, "used"),
               idle = random(*device, {3}, "idle"), dead = random(*device, {3}, "dead");
  Kept kept(*device);
  Tape tape;
  kept.watch(tape, "idle", idle);
  kept.watch(tape, "dead", dead);
  kept.watch(tape, "used", used);
  ops::mul(x, dead);  // its result leads nowhere
  const Tensor y = ops::mul(x, used);
  tape.backward(y, ops::full(*device, {3}, 1));
  CHECK_EQ(kept.place("finished idle"), std::size_t{0});
  CHECK_EQ(kept.place("finished used"), std::size_t{2});
  CHECK_EQ(kept.place("finished dead"), std::size_t{3});
  CHECK_EQ(kept.events.size(), std::size_t{4});  // no memory for those two
}

TEST("tape: a kept leaf whose sink gives the wrong memory is refused") {
  const auto device = std::make_shared<ReferenceBackend>();
  const Tensor x = random(*device, {3}, "x"), w = random(*device, {3}, "w");
  for (const Shape& shape : {Shape{2}, Shape{3, 1}}) {
    Tape tape;
    tape.watch(w, {[&] { return ops::full(*device, shape, 0); }, [] {}});
    CHECK_THROWS("ERR_SHAPE", tape.backward(ops::mul(x, w), ops::full(*device, {3}, 1)));
  }
  Tape tape;
  tape.watch(w, {[] { return Tensor(); }, [] {}});
  CHECK_THROWS("ERR_SHAPE", tape.backward(ops::mul(x, w), ops::full(*device, {3}, 1)));
}

TEST("tape: a gradient after the last one is an error, not a loss") {
  const auto device = std::make_shared<ReferenceBackend>();
  const Tensor x = random(*device, {3}, "x"), w = random(*device, {3}, "w");
  Kept kept(*device);
  Tape tape;
  kept.watch(tape, "w", w);
  tape.watch(x);
  // A gradient function that reaches a leaf that its node never named.
  const Tensor out = ops::full(*device, {3}, 2);
  tape.record("sly", {&out, 1}, {&x, 1}, [x, w](Gradients& gradients) {
    const Block sly = [&](std::span<const Tensor> in) { return std::vector<Tensor>{ops::mul(in[0], w)}; };
    Tape::replay(sly, {&x, 1}, gradients);
  });
  CHECK_THROWS("ERR_TAPE", tape.backward(out, ops::full(*device, {3}, 1)));
}

}  // namespace
}  // namespace danceflux::test
