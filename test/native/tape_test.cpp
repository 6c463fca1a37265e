// The tape: who gets a gradient, what is saved and for how long, and what a checkpoint may not change.
#include "autograd/tape.h"

#include <atomic>

#include "core/cancel.h"
#include "harness.h"
#include "op_readers.h"
#include "ops/ops.h"
#include "reference_backend.h"
#include "wrapped_backend.h"

namespace danceflux::test {
namespace {

std::shared_ptr<Backend> reference() { return std::make_shared<ReferenceBackend>(); }

Tensor random(Backend& device, const Shape& shape, const std::string& seed) {
  return ops::from_host(device, shape, normal_stream(seed, shape.numel()));
}

/// The parameters of two small layers with a skip: enough for every kind of node.
struct Net {
  Tensor w1, b1, w2;
  explicit Net(Backend& device)
      : w1(random(device, {6, 4}, "w1")), b1(random(device, {6}, "b1")), w2(random(device, {4, 6}, "w2")) {}
  std::vector<Tensor> operator()(const Tensor& x) const {
    const Tensor h = ops::linear_activation(UnaryOp::silu, x, w1, b1);
    const Tensor y = ops::add(ops::linear(h, w2, {}), x);
    return {ops::layer_norm(y, {}, {}, 1e-5f), ops::sum(y, {0})};
  }
};

struct NetGradients {
  Columns all;
  bool operator==(const NetGradients&) const = default;
};

/// Gradients of x (used inside and outside) and of the parameters, which accumulate in place.
Columns net_gradients(Backend& device, bool checkpointed, int depth) {
  const Net net(device);
  const Tensor x = random(device, {5, 4}, "x");
  const Tensor dw1 = ops::full(device, {6, 4}, 0), db1 = ops::full(device, {6}, 0),
               dw2 = ops::full(device, {4, 6}, 0);
  Tape tape;
  tape.watch(x);
  tape.watch(net.w1, dw1);
  tape.watch(net.b1, db1);
  tape.watch(net.w2, dw2);
  Tensor y = ops::silu(x), extra;
  for (int i = 0; i < depth; ++i) {
    const auto block = [&net](std::span<const Tensor> in) { return net(in[0]); };
    const auto outputs = checkpointed ? checkpoint(block, {y}) : net(y);
    y = ops::add(outputs[0], ops::mul(y, y));
    extra = extra ? ops::add(extra, outputs[1]) : outputs[1];
  }
  const Tensor roots[] = {y, extra},
               seeds[] = {random(device, y.shape(), "dy"), random(device, extra.shape(), "de")};
  tape.backward(roots, seeds);
  return {values_of(y), values_of(tape.gradient(x)), values_of(dw1), values_of(db1), values_of(dw2)};
}

}  // namespace

TEST("tape: a checkpoint changes no bit of any gradient") {
  for (const auto& [name, device] : test_devices()) {
    for (const int depth : {1, 3})
      CHECK(net_gradients(*device, true, depth) == net_gradients(*device, false, depth));
  }
}

TEST("tape: checkpoints nest") {
  const auto device = reference();
  const Tensor x = random(*device, {3, 4}, "x"), w = random(*device, {4, 4}, "w"),
               seed = random(*device, {3, 4}, "seed");
  const auto run = [&](bool nested) {
    const Tensor dw = ops::full(*device, {4, 4}, 0);
    const Block inner = [&](std::span<const Tensor> in) {
      return std::vector<Tensor>{ops::silu(ops::linear(in[0], w, {}))};
    };
    const Block outer = [&](std::span<const Tensor> in) {
      const Tensor h = nested ? checkpoint(inner, {in[0]})[0] : inner(in)[0];
      return std::vector<Tensor>{ops::add(inner({&h, 1})[0], in[0])};
    };
    Tape tape;
    tape.watch(x);
    tape.watch(w, dw);
    const Tensor y = nested ? checkpoint(outer, {x})[0] : outer({&x, 1})[0];
    tape.backward(y, seed);
    return Columns{values_of(tape.gradient(x)), values_of(dw)};
  };
  CHECK(run(true) == run(false));
}

TEST("tape: a checkpoint may hand an input through, take one twice, and leave an output unused") {
  const auto device = reference();
  const Tensor x = random(*device, {3}, "x");
  Tape tape;
  tape.watch(x);
  const auto block = [](std::span<const Tensor> in) {
    return std::vector<Tensor>{in[0], ops::mul(in[0], in[1]), ops::silu(in[2]), in[0]};
  };
  const auto outputs = checkpoint(block, {x, x, {x}});
  tape.backward(ops::add(ops::add(outputs[0], outputs[1]), outputs[3]), ops::full(*device, {3}, 1));
  const auto got = values_of(tape.gradient(x)), values = values_of(x);
  for (std::size_t i = 0; i < 3; ++i) CHECK_NEAR(got[i], 2 + 2 * values[i], 1e-12);
}

TEST("tape: a checkpoint refuses to lose the gradient of a tensor from outside") {
  const auto device = reference();
  const Tensor x = random(*device, {3}, "x");
  Tape tape;
  tape.watch(x);
  const Tensor hidden = ops::silu(x);
  const auto outputs = checkpoint(
      [&](std::span<const Tensor> in) { return std::vector<Tensor>{ops::mul(in[0], hidden)}; }, {x});
  CHECK_THROWS("ERR_TAPE", tape.backward(outputs[0], ops::full(*device, {3}, 1)));
}

TEST("tape: without a recording nothing is kept, and a checkpoint just runs") {
  const auto device = reference();
  const Tensor x = random(*device, {3, 4}, "x");
  CHECK(Tape::current() == nullptr);
  CHECK_EQ(checkpoint([](std::span<const Tensor> in) { return std::vector<Tensor>{ops::silu(in[0])}; }, {x})
               .size(),
           std::size_t{1});
  Tape tape;
  ops::silu(x);
  CHECK_EQ(tape.nodes(), std::size_t{0});
  tape.watch(x);
  {
    const NoRecording quiet;
    ops::silu(x);
    CHECK(Tape::current() == nullptr);
  }
  CHECK_EQ(tape.nodes(), std::size_t{0});
  ops::silu(x);
  CHECK_EQ(tape.nodes(), std::size_t{1});
}

TEST("tape: recordings nest, and the outer one goes on") {
  const auto device = reference();
  const Tensor x = random(*device, {3}, "x");
  Tape outer;
  outer.watch(x);
  const Tensor y = ops::mul(x, x);
  {
    Tape inner;
    const Tensor z = y.detach();
    inner.watch(z);
    inner.backward(ops::mul(z, z), ops::full(*device, {3}, 1));
    CHECK_NEAR(values_of(inner.gradient(z))[0], 2 * values_of(z)[0], 1e-12);
    CHECK(Tape::current() == &inner);
  }
  CHECK(Tape::current() == &outer);
  outer.backward(y, ops::full(*device, {3}, 1));
  CHECK_NEAR(values_of(outer.gradient(x))[0], 2 * values_of(x)[0], 1e-12);
}

TEST("tape: gradients accumulate in place over tapes") {
  const auto device = reference();
  const Tensor w = random(*device, {2, 3}, "w"), dw = ops::full(*device, {2, 3}, 10),
               x = random(*device, {4, 3}, "x");
  const void* address = dw.address();
  for (int step = 0; step < 2; ++step) {
    Tape tape;
    tape.watch(w, dw);
    tape.backward(ops::linear(x, w, {}), ops::full(*device, {4, 2}, 1));
    CHECK(tape.gradient(w).address() == address);
  }
  const auto sums = values_of(ops::sum(x, {0})), got = values_of(dw);
  for (std::size_t i = 0; i < 6; ++i) CHECK_NEAR(got[i], 10 + 2 * sums[i % 3], 1e-12);
}

TEST("tape: what nobody wants is not computed") {
  const auto device = std::make_shared<WrappedBackend>(reference());
  const Tensor x = random(*device, {5, 4}, "x"), w = random(*device, {3, 4}, "w"),
               b = random(*device, {3}, "b");
  const Tensor seed = random(*device, {5, 3}, "seed");
  struct Row {
    bool x, w, b;
    int matmuls, reduces;
  };
  for (const Row row : {Row{true, false, false, 1, 0},
                        {false, true, false, 1, 0},
                        {false, false, true, 0, 1},
                        {true, true, true, 2, 1}}) {
    Tape tape;
    if (row.x) tape.watch(x);
    if (row.w) tape.watch(w);
    if (row.b) tape.watch(b);
    const Tensor y = ops::linear(x, w, b);
    device->calls.clear();
    tape.backward(y, seed);
    CHECK_EQ(device->calls["matmul"], row.matmuls);
    CHECK_EQ(device->calls["reduce"], row.reduces);
  }
}

TEST("tape: a weight that is used twice adds in place the second time") {
  const auto device = std::make_shared<WrappedBackend>(reference());
  const Tensor x = random(*device, {5, 4}, "x"), w = random(*device, {4, 4}, "w");
  Tape tape;
  tape.watch(w);
  const Tensor y = ops::linear(ops::linear(x, w, {}), w, {});
  device->calls.clear();
  tape.backward(y, random(*device, {5, 4}, "seed"));
  CHECK_EQ(device->calls["matmul"], 3);
  CHECK_EQ(device->calls["binary"], 0);
}

TEST("tape: parts of one tensor give one gradient, without zeros between") {
  const auto device = std::make_shared<WrappedBackend>(reference());
  const Tensor x = random(*device, {2, 9}, "x");
  Tape tape;
  tape.watch(x);
  const auto parts = ops::split(x, std::vector<std::int64_t>{2, 3, 4}, 1);
  const Tensor roots[] = {ops::silu(parts[0]), ops::silu(parts[1]), ops::silu(parts[2])};
  const Tensor seeds[] = {ops::full(*device, {2, 2}, 1), ops::full(*device, {2, 3}, 1),
                          ops::full(*device, {2, 4}, 1)};
  device->calls.clear();
  tape.backward(roots, seeds);
  CHECK_EQ(device->calls["fill"], 0);
  CHECK_EQ(device->calls["copy"], 0);
  CHECK_EQ(device->calls["binary"], 0);
}

TEST("tape: a part that two ops read, one that none reads, and one seen by head") {
  const auto device = std::make_shared<WrappedBackend>(reference());
  const Tensor x = random(*device, {2, 3, 12}, "x");
  const auto run = [&](bool whole) {
    Tape tape;
    tape.watch(x);
    const std::vector<std::int64_t> lengths{2, 4, 2, 4};
    auto parts = ops::split(x, lengths, 2);
    if (whole)
      parts = {ops::narrow(x, 2, 0, 2), ops::narrow(x, 2, 2, 4), ops::narrow(x, 2, 6, 2),
               ops::narrow(x, 2, 8, 4)};
    const Tensor heads = ops::permute(ops::reshape(parts[1], {2, 3, 2, 2}), {0, 2, 1, 3});
    const Tensor roots[] = {ops::mul(ops::silu(parts[0]), ops::unary(UnaryOp::exp, parts[0])),
                            ops::silu(heads), ops::reshape(parts[3], {6, 4})};
    const Tensor seeds[] = {random(*device, {2, 3, 2}, "a"), random(*device, {2, 2, 3, 2}, "b"),
                            random(*device, {6, 4}, "c")};
    device->calls.clear();
    tape.backward(roots, seeds);
    return values_of(tape.gradient(x));
  };
  const auto split = run(false);
  CHECK_EQ(device->calls["copy"], 2);  // of the part that was added up, and of the seed
  CHECK_EQ(device->calls["fill"], 1);
  CHECK(split == run(true));
}

TEST("tape: a gradient that is passed on is not written to") {
  const auto device = reference();
  const Tensor a = random(*device, {3}, "a"), b = random(*device, {3}, "b");
  Tape tape;
  tape.watch(a);
  tape.watch(b);
  // The sum's gradient goes to a and b alike; a gets more afterwards, b must not.
  const Tensor sum = ops::add(a, b), y = ops::add(ops::add(sum, a), ops::mul(a, a));
  const Tensor seed = ops::full(*device, {3}, 1);
  tape.backward(y, seed);
  for (const double value : values_of(seed)) CHECK_EQ(value, 1.0);
  for (const double value : values_of(tape.gradient(b))) CHECK_EQ(value, 1.0);
  CHECK_NEAR(values_of(tape.gradient(a))[0], 2 + 2 * values_of(a)[0], 1e-12);
}

TEST("tape: a stopped job stops between ops, forward and backward") {
  const auto device = reference();
  const Tensor x = random(*device, {3}, "x");
  std::atomic<bool> flag{false};
  const CancelScope scope(&flag);
  Tape tape;
  tape.watch(x);
  const Tensor y = ops::reshape(ops::silu(x), {3, 1});
  flag = true;
  CHECK_THROWS("ERR_ABORTED", ops::silu(y));
  CHECK_THROWS("ERR_ABORTED", tape.backward(y, y));
  CHECK(Tape::current() == &tape);
  flag = false;
  ops::silu(y);
}

TEST("tape: memory returns to where it was, and goes back as backward goes") {
  const auto device = reference();
  const std::size_t base = device->memory().used;
  {
    const Tensor x = ops::full(*device, {1000}, 0.5f);
    std::size_t recorded_use = 0;
    Tape tape;
    tape.watch(x);
    Tensor y = x;
    for (int i = 0; i < 10; ++i) y = ops::silu(y);
    recorded_use = device->memory().used;
    CHECK_EQ(recorded_use, base + 11 * 4000);  // x and ten results, each saved or held by y
    const Tensor seed = ops::full(*device, {1000}, 1), root = y;
    y = Tensor();
    device->reset_peak();
    tape.backward(root, seed);
    // At its worst one new gradient stands beside what was saved: each saved tensor goes before the next
    // gradient comes.
    CHECK(device->memory().peak <= recorded_use + 4000 + 2 * 4000);
    CHECK_EQ(device->memory().used, base + 4 * 4000);  // x, root, seed, gradient
    CHECK_EQ(tape.nodes(), std::size_t{0});
  }
  CHECK_EQ(device->memory().used, base);
}

TEST("tape: a checkpoint keeps its inputs only") {
  const auto device = reference();
  const Tensor x = ops::full(*device, {1000}, 0.5f);
  const auto deep = [](std::span<const Tensor> in) {
    Tensor y = in[0];
    for (int i = 0; i < 10; ++i) y = ops::silu(y);
    return std::vector<Tensor>{y};
  };
  Tape tape;
  tape.watch(x);
  const std::size_t before = device->memory().used;
  const auto outputs = checkpoint(deep, {x});
  CHECK_EQ(device->memory().used, before + 4000);
  tape.backward(outputs[0], ops::full(*device, {1000}, 1));
  CHECK(tape.gradient(x).defined());
}

TEST("tape: refusals") {
  const auto device = reference();
  const Tensor x = random(*device, {3}, "x");
  Tape tape;
  CHECK_THROWS("ERR_SHAPE", tape.watch({}));
  CHECK_THROWS("ERR_SHAPE", tape.watch(x, ops::full(*device, {4}, 0)));
  CHECK_THROWS("ERR_DTYPE", tape.watch(x, device->empty({3}, DType::bf16)));
  tape.watch(x);
  CHECK_THROWS("ERR_SHAPE", tape.backward(ops::silu(x), ops::full(*device, {4}, 1)));
  CHECK_THROWS("ERR_TAPE", ops::fill_(x, 0));
  CHECK(!wants_gradient({}));
}

TEST("tape: two backward permissions, each alone and none") {
  // Every fused op with every set of kernels: the gradient may not depend on which are there.
  for (const auto& [name, inner] : test_devices()) {
    Complaints complaints;
    const auto device = std::make_shared<WrappedBackend>(inner, name.starts_with("cpu"));
    const auto oracle = reference();
    for (const OpCase& row : op_cases()) {
      if (row.size != Size::test || !*row.shortcut) continue;
      const Columns wanted = gradient_values(*oracle, row);
      for (const std::set<std::string>& refused : {std::set<std::string>{},
                                                   {row.shortcut},
                                                   {row.shortcut_backward},
                                                   {row.shortcut, row.shortcut_backward}}) {
        device->refused = refused;
        const Columns got = gradient_values(*device, row);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          const double error = error_of(got[i], wanted[i]);
          if (!(error <= gradient_tolerance(row.family)))
            complaints.add(row.name, " on ", name, ", ", refused.size(), " refused, input ", i,
                           ": got an error of ", error);
        }
      }
    }
    complaints.finish();
    CHECK_EQ(device->overruns, 0);
  }
}

}  // namespace danceflux::test
