// Low-rank adapters: y += (alpha / rank) * (x A^T) B^T beside a frozen linear layer (Hu et al. 2021, "LoRA").
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nn/module.h"

namespace danceflux::nn {

struct LoraConfig {
  int rank = 16;
  float alpha = 16;
  /// Names of layers without ".weight": whole ("transformer_blocks.0.attn.to_q") or their last parts
  /// ("attn.to_q", "to_q").
  std::vector<std::string> targets;
  std::uint64_t seed = 0;
};

/// Fills `out` with numbers uniform in [-1, 1), a pure function of the seed and the parameter's name.
using UniformFill = std::function<void(std::span<float> out, std::uint64_t seed, const std::string& name)>;

/// Gives every linear layer that a target names an adapter: parameters `<layer>.lora_A.weight` [rank, in],
/// uniform in
/// +-1/sqrt(in) as PEFT does, and `<layer>.lora_B.weight` [out, rank], zeros; both f32, both counted as
/// loaded. Which parameters train stays as it was: call set_trainable next. Returns the names of the adapted
/// layers. Throws ERR_LORA when a target names nothing or when there are adapters already, ERR_DEVICE before
/// materialize().
std::vector<std::string> add_lora(Module& model, const LoraConfig& config, const UniformFill& uniform);
/// The model as it was before add_lora.
void remove_lora(Module& model);
/// Adds the adapters' effect to the weights (rounded to their storage dtype) and removes them.
void merge_lora(Module& model);
/// Is this the name of an adapter's parameter?
bool is_lora_name(const std::string& name);

}  // namespace danceflux::nn
