// FLUX.1: the velocity of a rectified flow from picture tokens, text tokens, time and guidance. Parameters
// carry the names of diffusers' FluxTransformer2DModel.
//
// Legend: B batch, T text tokens, N picture tokens (grid_rows * grid_cols), D width, H heads, K head width.
#pragma once
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "nn/layers.h"

namespace danceflux::models {

struct FluxConfig {
  int in_channels = 64, out_channels = 0;  // 0: as in_channels
  int num_layers = 19, num_single_layers = 38;
  int attention_head_dim = 128, num_attention_heads = 24;
  int joint_attention_dim = 4096, pooled_projection_dim = 768;
  bool guidance_embeds = false;
  std::array<int, 3> axes_dims_rope{16, 56, 56};
  float theta = 10000;

  int width() const { return attention_head_dim * num_attention_heads; }
};

struct FluxInputs {
  Tensor latents;                // [B, N, in_channels], packed
  Tensor text;                   // [B or 1, T, joint_attention_dim]
  Tensor pooled;                 // [B or 1, pooled_projection_dim]
  std::vector<float> timesteps;  // [B], as the network sees them: 0..1000
  std::vector<float> guidance;   // [B], times 1000; empty for a model without guidance
  int grid_rows = 0, grid_cols = 0;
  /// [B, modulation_width()], rows of what modulations() gave for these timesteps, guidance and pooled: the
  /// three are then not looked at.
  Tensor modulations = {};
};

/// Rotations for a run of tokens, cos and sin [L, K/2].
struct Rotation {
  Tensor cos, sin;
  Rotation tokens(std::int64_t start, std::int64_t length) const;
};

/// How time, guidance and prompt steer one branch of a block: h = norm(x) * (1 + scale) + shift, then x +
/// gate * branch(h). [B, D] each.
struct Modulation {
  Tensor shift, scale, gate;
};

/// linear_2(silu(linear_1(x))): [B, in] -> [B, D].
class Embedder : public nn::Module {
 public:
  Embedder(Module& parent, std::string name, std::int64_t in, std::int64_t width);
  Tensor operator()(const Tensor& x) const;

 private:
  nn::Linear linear_1, linear_2;
};

/// One side of a double block, picture or text: what it alone does, before and after the attention that both
/// share.
class Stream : public nn::Module {
 public:
  struct Names;
  Stream(Module& parent, const FluxConfig& config, const Names& names);
  /// Shift, scale and gate of attention, then of the MLP: [B, 6 D].
  Tensor modulation(const Tensor& silu_temb) const { return modulation_(silu_temb); }
  struct Heads {
    Tensor q, k, v;  // [B, L, H, K]
  };
  Heads heads(const Tensor& x, const Modulation& modulation, const Rotation& rotation) const;
  /// x + gate * to_out(attended)
  Tensor add_attention(const Tensor& x, const Modulation& modulation, const Tensor& attended) const;
  /// x + gate * mlp(x)
  Tensor add_mlp(const Tensor& x, const Modulation& modulation) const;

 private:
  int head_count_;
  nn::Linear modulation_, qkv_;
  nn::RmsNorm norm_q_, norm_k_;
  nn::Linear to_out_, ff_in_, ff_out_;
};

/// Two streams that attend jointly.
class DoubleBlock : public nn::Module {
 public:
  DoubleBlock(Module& parent, std::string name, const FluxConfig& config);
  Stream image, text;
  struct Tokens {
    Tensor image, text;
  };
  Tokens operator()(const Tokens& tokens, const Tokens& modulation, const Rotation& rotation) const;
};

/// Attention and MLP side by side on the joint sequence.
class SingleBlock : public nn::Module {
 public:
  SingleBlock(Module& parent, std::string name, const FluxConfig& config);
  /// Shift, scale and gate: [B, 3 D].
  Tensor modulation(const Tensor& silu_temb) const { return modulation_(silu_temb); }
  Tensor operator()(const Tensor& x, const Tensor& modulation, const Rotation& rotation) const;

 private:
  int head_count_;
  nn::Linear modulation_, qkv_mlp_;
  nn::RmsNorm norm_q_, norm_k_;
  nn::Linear proj_out_;
};

class FluxTransformer : public nn::Module {
 public:
  /// Throws ERR_SHAPE when the rotation axes do not add up to the head width.
  explicit FluxTransformer(const FluxConfig& config);

  /// Velocity [B, N, out_channels], f32. The first `recompute_blocks` blocks (double, then single; -1: all)
  /// keep only their inputs while a tape is open and run again in backward, with bitwise the same gradients.
  /// No row depends on B. Throws ERR_SHAPE when the inputs disagree with the config or with each other.
  Tensor forward(const FluxInputs& inputs, int recompute_blocks = 0);
  /// All that time, guidance and prompt tell the blocks, as long as the weights stay: [R, modulation_width()]
  /// in the activation dtype, a row for each timestep; pooled [R or 1, pooled_projection_dim]. A rollout
  /// knows all its timesteps: asked for at once, the modulation's weights (a quarter of the model) are read
  /// once instead of once a step. Throws ERR_SHAPE.
  Tensor modulations(const std::vector<float>& timesteps, const std::vector<float>& guidance,
                     const Tensor& pooled);
  std::int64_t modulation_width() const;
  const FluxConfig& config() const { return config_; }

 private:
  void check(const FluxInputs& inputs) const;
  void check_steering(const FluxInputs& inputs, std::int64_t batch) const;
  Tensor time_text_embedding(const FluxInputs& inputs) const;
  class Steering;
  /// forward() from the first layer to the last.
  Tensor network(const Tensor& latents, const Tensor& text, Steering steering, const Rotation& turn,
                 int recompute_blocks) const;
  /// The same where nothing is recorded and modulations are given, so that only numbers change from step to
  /// step.
  Tensor recurring_network(const FluxInputs& inputs, const Rotation& turn) const;
  Rotation rotation(int text, int rows, int cols);

  FluxConfig config_;
  Module time_text_embed_;
  Embedder timestep_embedder_;
  std::unique_ptr<Embedder> guidance_embedder_;
  Embedder text_embedder_;
  nn::Linear context_embedder_, x_embedder_;
  std::deque<DoubleBlock> transformer_blocks_;
  std::deque<SingleBlock> single_transformer_blocks_;
  nn::Linear norm_out_, proj_out_;
  std::map<std::tuple<const Backend*, int, int, int>, Rotation> rotations_;
};

}  // namespace danceflux::models
