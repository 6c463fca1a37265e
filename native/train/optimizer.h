// AdamW over the trainable parameters of a model, with f32 masters, global-norm clipping and a running
// average of the weights.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "ops/ops.h"

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
  double gradient_norm = 0;  // before clipping
  bool skipped = false;      // the norm was not finite: nothing moved
  std::int64_t step = 0;     // updates done
};

class Optimizer {
 public:
  Optimizer(std::vector<TrainedParameter> parameters, const OptimizerOptions& options);

  /// Clips (clip_norm 0: not), updates weights and running average, zeroes the gradients.
  StepReport step(double learning_rate, double clip_norm);
  /// Exchanges weights and running average. Throws ERR_OPTION without one.
  void swap_average();
  bool average_swapped() const { return swapped_; }

  /// Masters, moments, averages and counters as one safetensors file; load() puts the weights back too, bit
  /// for bit.
  void save(const std::string& path) const;
  /// Throws ERR_CHECKPOINT when the file's parameters are not this optimizer's.
  void load(const std::string& path);
  std::int64_t steps() const { return steps_; }

 private:
  struct Entry {
    TrainedParameter parameter;
    Tensor master, m, v, average;
  };
  void for_each_state(const std::function<void(const std::string& name, const Tensor& state)>& visit) const;
  void zero_gradients();

  OptimizerOptions options_;
  std::vector<Entry> entries_;
  std::int64_t steps_ = 0;
  bool swapped_ = false;
};

}  // namespace danceflux::train
