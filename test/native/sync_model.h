// A small model whose gradients travel between ranks that are threads: what tests of data-parallel training
// share.
#pragma once
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "goldens.h"
#include "harness.h"
#include "nn/layers.h"
#include "op_cases.h"
#include "ops/ops.h"
#include "thread_ranks.h"
#include "train/optimizer.h"

namespace danceflux::test {

inline constexpr int kWidth = 40;

/// Layers of three published matrices each, and a norm at the end.
class SmallModel : public nn::Module {
 public:
  explicit SmallModel(Backend& device, DType dtype = DType::f32, int depth = 3)
      : norm_(*this, "norm", kWidth, 1e-5f) {
    for (int i = 0; i < depth; ++i) {
      const std::string name = "layers." + std::to_string(i);
      layers_.emplace_back(
          *this, std::vector<nn::Linear::Part>{{name + ".q", 24}, {name + ".k", 8}, {name + ".v", 8}},
          kWidth);
    }
    materialize(device, dtype);
    for (const nn::NamedParameter& named : named_parameters()) {
      std::vector<float> values = normal_stream(named.name, named.shape.numel());
      for (float& value : values) value *= 0.2f;
      load(named.name, DType::f32, values.data(), values.size());
    }
    set_trainable([](const std::string&) { return true; });
  }

  /// `probe` runs in backward when the first layer is about to be.
  Tensor forward(const Tensor& x, bool checkpointed, const std::function<void()>& probe = {}) {
    Tensor y = x;
    bool first = true;
    for (const nn::Linear& layer : layers_) {
      const Block block = [&layer](std::span<const Tensor> in) {
        return std::vector<Tensor>{ops::add(layer.activated(UnaryOp::silu, in[0]), in[0])};
      };
      y = checkpointed ? checkpoint(block, {y})[0] : block({&y, 1})[0];
      if (first && probe) y = probed(y, probe);
      first = false;
    }
    return norm_(y);
  }

 private:
  static Tensor probed(const Tensor& x, const std::function<void()>& probe) {
    const Tensor out = x.detach();
    Tape* const tape = Tape::current();
    tape->record("probe", {&out, 1}, {&x, 1}, [probe](Gradients& gradients) {
      probe();
      gradients.add(0, gradients.output());
    });
    return out;
  }

  std::deque<nn::Linear> layers_;
  nn::RmsNorm norm_;
};

/// An update as a trainer makes it.
struct Plan {
  DType dtype = DType::f32;
  int samples = 4;  // of all ranks
  int passes = 2;   // backward passes of a sample
  int updates = 3;
  int depth = 3;  // layers
  float rate = 0.05f, clip = 0.7f, ema = 0;
  bool checkpointed = false;
  train::Sharding sharding = train::Sharding::none;
  bool ordered = false, overlap = true;
  std::int64_t bucket_bytes = 12000;
  std::function<bool(const std::string& name)> trainable;
  /// Called before each backward pass; may change its seed.
  std::function<void(int rank, int update, int sample, std::vector<float>& seed)> spoil;
};

/// One rank's end of a training.
struct RankRun {
  RankRun(const Plan& plan, const std::shared_ptr<Communicator>& communicator,
          const std::shared_ptr<Backend>& on)
      : plan_(plan),
        device(on),
        rank_(communicator ? communicator->rank() : 0),
        ranks_(communicator ? communicator->size() : 1),
        model(*on, plan.dtype, plan.depth) {
    if (plan.trainable) model.set_trainable(plan.trainable);
    sync = train::GradientSync::attach(
        model, {communicator, plan.sharding, plan.bucket_bytes, plan.ordered, plan.overlap});
    train::OptimizerOptions options;
    options.weight_decay = 0.01f;
    options.ema_decay = plan.ema;
    optimizer = std::make_unique<train::Optimizer>(sync, options);
  }

  void backward(int update, int sample, int pass, const nn::BackwardMarks& marks,
                const std::function<void()>& probe = {}) {
    const std::string key =
        std::to_string(update) + "." + std::to_string(sample) + "." + std::to_string(pass);
    const Tensor x = ops::from_host(*device, {5, kWidth}, normal_stream("x" + key, 5 * kWidth));
    std::vector<float> seed = normal_stream("dy" + key, 5 * kWidth);
    for (float& value : seed) value /= static_cast<float>(plan_.samples * plan_.passes);
    if (plan_.spoil) plan_.spoil(rank_, update, sample, seed);
    Tape tape;
    model.watch(tape, marks);
    const Tensor y = model.forward(x, plan_.checkpointed, probe);
    tape.backward(y, ops::from_host(*device, y.shape(), seed));
  }

  train::StepReport update(int number) {
    const int own = plan_.samples / ranks_;
    for (int i = 0; i < own; ++i) {
      for (int pass = 0; pass < plan_.passes; ++pass) {
        const bool ends = pass + 1 == plan_.passes;
        backward(number, rank_ * own + i, pass, {ends && i + 1 == own, ends, own});
      }
    }
    return optimizer->step(plan_.rate, plan_.clip);
  }

  std::map<std::string, std::vector<float>> weights() const {
    std::map<std::string, std::vector<float>> all;
    for (const nn::NamedParameter& named : model.named_parameters())
      all[named.name] = ops::to_host(named.value());
    return all;
  }

  const Plan plan_;
  std::shared_ptr<Backend> device;
  int rank_, ranks_;
  SmallModel model;
  std::shared_ptr<train::GradientSync> sync;
  std::unique_ptr<train::Optimizer> optimizer;
};

using Weights = std::map<std::string, std::vector<float>>;

struct Outcome {
  Weights weights;                                      // the same on all ranks: checked
  std::vector<std::vector<train::StepReport>> reports;  // [rank][update]
  bool operator==(const Outcome& other) const { return same(weights, other.weights); }
  static bool same(const Weights& a, const Weights& b) {
    if (a.size() != b.size()) return false;
    for (const auto& [name, values] : a) {
      const auto found = b.find(name);
      if (found == b.end() || found->second.size() != values.size() ||
          std::memcmp(found->second.data(), values.data(), values.size() * sizeof(float)) != 0)
        return false;
    }
    return true;
  }
};

/// Trains on `ranks` threads; 0: on one, without a communicator.
inline Outcome trained(int ranks, const Plan& plan) {
  Outcome outcome;
  std::vector<Weights> weights(static_cast<std::size_t>(std::max(1, ranks)));
  outcome.reports.resize(weights.size());
  const auto run = [&](int rank, const std::shared_ptr<Communicator>& communicator,
                       const std::shared_ptr<Backend>& device) {
    RankRun own(plan, communicator, device);
    const auto place = static_cast<std::size_t>(rank);
    for (int i = 0; i < plan.updates; ++i) outcome.reports[place].push_back(own.update(i));
    weights[place] = own.weights();
    CHECK_EQ(dynamic_cast<WrappedBackend&>(*device).overruns, 0);
  };
  if (ranks == 0)
    run(0, nullptr, std::make_shared<WrappedBackend>(cpu_device(1), true));
  else
    on_ranks(ranks, [&](ThreadWorld&, int rank, const auto& communicator, const auto& device) {
      run(rank, communicator, device);
    });
  for (const Weights& other : weights) CHECK(Outcome::same(other, weights[0]));
  outcome.weights = std::move(weights[0]);
  return outcome;
}

}  // namespace danceflux::test
