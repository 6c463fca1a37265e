// AdamW over the trainable parameters of a model, or over this rank's share of them, with f32 masters,
// global-norm clipping and a running average of the weights.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ops/ops.h"
#include "train/gradient_sync.h"

namespace danceflux::train {

/// Doubles, as in PyTorch: 1 - beta2 is taken of them, and 1 - 0.999f is off by 1e-5.
struct OptimizerOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  double ema_decay = 0;  // 0: no running average
};

/// What the optimizer moves: views of a model's stored value (any float dtype) and f32 gradient, both
/// contiguous.
struct TrainedParameter {
  std::string name;
  Tensor value;
  Tensor gradient;
};

struct StepReport {
  double gradient_norm = 0;  // before clipping; over all ranks
  bool skipped = false;      // the norm was not finite: nothing moved, on no rank
  std::int64_t step = 0;     // updates done
  SyncReport sync;
  std::size_t state_bytes = 0;  // masters, moments and averages of this rank
};

class Optimizer {
 public:
  /// One rank, with gradients of its own.
  Optimizer(std::vector<TrainedParameter> parameters, const OptimizerOptions& options);
  /// This rank's share of what `sync` keeps. Every call below is then one that all ranks make, but save().
  Optimizer(std::shared_ptr<GradientSync> sync, const OptimizerOptions& options);

  /// Gradients are whole after this: summed over samples and ranks. step() does it by itself.
  void settle();
  /// Clips (clip_norm 0: not), updates weights and running average, zeroes the gradients.
  StepReport step(double learning_rate, double clip_norm);
  /// Exchanges weights and running average. Throws ERR_OPTION without one.
  void swap_average();
  bool average_swapped() const { return swapped_; }

  /// Masters, moments, averages and counters of this rank's share as one safetensors file. A parameter that
  /// is here as a whole has its own shape; a part of one is flat, its name ends in "@" and its first element.
  void save(const std::string& path) const;
  /// The files of all shares of one moment, cut in whatever way. Puts the weights back too, bit for bit.
  /// Throws ERR_CHECKPOINT when they are not this optimizer's or do not make a whole; nothing is changed
  /// then.
  void load(std::span<const std::string> paths);
  void load(const std::string& path) { load({&path, 1}); }
  std::int64_t steps() const { return steps_; }
  std::size_t state_bytes() const;

 private:
  /// Elements [begin, end) of a parameter. Tensors are flat.
  struct Entry {
    std::string name;
    Shape shape;  // of the parameter
    std::int64_t begin = 0, end = 0;
    Tensor value, master, m, v, average;
  };
  struct State {
    std::string name;  // as in a file of whole parameters
    const Entry& entry;
    const Tensor& tensor;
  };
  void add_entry(Entry entry, const OptimizerOptions& options);
  std::vector<Tensor> gradients() const;
  void for_each_state(const std::function<void(const State& state)>& visit) const;
  void write_values();
  void publish();

  OptimizerOptions options_;
  std::shared_ptr<GradientSync> sync_;  // or
  std::vector<Tensor> own_gradients_;   // one per entry
  std::vector<Entry> entries_;
  std::int64_t steps_ = 0;
  bool swapped_ = false;
};

}  // namespace danceflux::train
