// AutoencoderKL (Rombach et al. 2022): pictures to latents and back. Parameters carry diffusers' names; 1x1
// convolutions of other layouts are reshaped to the linear layers of the attention by whoever loads them.
// Scaling and shift of latents are the caller's.
//
// Legend: B batch, C channels, h and w the picture, Z latent channels.
#pragma once
#include <deque>
#include <memory>
#include <vector>

#include "nn/layers.h"

namespace danceflux::models {

struct AutoencoderConfig {
  int in_channels = 3, out_channels = 3, latent_channels = 16;
  std::vector<int> block_out_channels{128, 256, 512, 512};
  int layers_per_block = 2, norm_num_groups = 32;
  bool mid_block_add_attention = true;
  bool use_quant_conv = false, use_post_quant_conv = false;
  /// Halves that are not wanted are not made: they have no parameters.
  bool with_encoder = true, with_decoder = true;
};

/// x + conv2(silu(norm2(conv1(silu(norm1 x))))), with a 1x1 shortcut where the channels change.
class ResnetBlock : public nn::Module {
 public:
  ResnetBlock(Module& parent, std::string name, int in, int out, int groups);
  Tensor operator()(const Tensor& x) const;

 private:
  nn::GroupNorm norm1_;
  nn::Conv2d conv1_;
  nn::GroupNorm norm2_;
  nn::Conv2d conv2_;
  std::unique_ptr<nn::Conv2d> conv_shortcut_;
};

/// Every pixel attends to every pixel with a single head as wide as the channels; residual.
class PixelAttention : public nn::Module {
 public:
  PixelAttention(Module& parent, std::string name, int channels, int groups);
  Tensor operator()(const Tensor& x) const;

 private:
  nn::GroupNorm group_norm_;
  nn::Linear qkv_, to_out_;
};

class MidBlock : public nn::Module {
 public:
  MidBlock(Module& parent, std::string name, int channels, const AutoencoderConfig& config);
  Tensor operator()(const Tensor& x) const;

 private:
  ResnetBlock first_;
  std::unique_ptr<PixelAttention> attention_;
  ResnetBlock second_;
};

/// Resnets at one resolution, then a convolution to the next one (twice or half as large) unless it is the
/// last.
class Level : public nn::Module {
 public:
  enum class Next : std::uint8_t { same, up, down };
  Level(Module& parent, std::string name, int in, int out, int resnets, int groups, Next next);
  Tensor operator()(const Tensor& x) const;

 private:
  std::deque<ResnetBlock> resnets_;
  Next next_;
  std::unique_ptr<nn::Conv2d> resample_;
};

class AutoencoderEncoder : public nn::Module {
 public:
  AutoencoderEncoder(Module& parent, const AutoencoderConfig& config);
  Tensor operator()(const Tensor& images) const;

 private:
  nn::Conv2d conv_in_;
  std::deque<Level> down_blocks_;
  MidBlock mid_block_;
  nn::GroupNorm conv_norm_out_;
  nn::Conv2d conv_out_;
};

class AutoencoderDecoder : public nn::Module {
 public:
  AutoencoderDecoder(Module& parent, const AutoencoderConfig& config);
  Tensor operator()(const Tensor& latents) const;

 private:
  nn::Conv2d conv_in_;
  MidBlock mid_block_;
  std::deque<Level> up_blocks_;
  nn::GroupNorm conv_norm_out_;
  nn::Conv2d conv_out_;
};

class AutoencoderKL : public nn::Module {
 public:
  /// Throws ERR_SHAPE when the groups do not divide the channels.
  explicit AutoencoderKL(const AutoencoderConfig& config);
  /// images [B, in_channels, h, w] -> moments [B, 2 Z, h / factor, w / factor] (rounded down): mean, then log
  /// variance. Throws ERR_SHAPE on other channels or a side below factor().
  Tensor encode(const Tensor& images) const;
  /// latents [B, Z, h, w] -> pictures [B, out_channels, factor h, factor w], about -1..1, not clamped.
  Tensor decode(const Tensor& latents) const;
  /// Pixels per latent along each side: 8 for FLUX.
  int factor() const { return 1 << (config_.block_out_channels.size() - 1); }
  const AutoencoderConfig& config() const { return config_; }

 private:
  AutoencoderConfig config_;
  std::unique_ptr<AutoencoderEncoder> encoder_;
  std::unique_ptr<nn::Conv2d> quant_conv_;
  std::unique_ptr<AutoencoderDecoder> decoder_;
  std::unique_ptr<nn::Conv2d> post_quant_conv_;
};

}  // namespace danceflux::models
