#include "models/autoencoder.h"

#include <algorithm>
#include <cmath>

#include "autograd/observer.h"
#include "core/error.h"

namespace danceflux::models {
namespace {

constexpr float kNormEps = 1e-6f;
constexpr std::int64_t kQueriesAtOnce =
    4096;  // a device without a kernel for wide heads makes [queries, h w] scores
constexpr ConvArgs kSame{.stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1};
constexpr ConvArgs kHalf{
    .stride = 2, .pad_bottom = 1, .pad_right = 1};  // diffusers pads right and bottom only

std::unique_ptr<nn::Conv2d> pointwise(nn::Module& parent, const char* name, int in, int out) {
  return std::make_unique<nn::Conv2d>(parent, name, in, out, 1, ConvArgs{});
}

/// Attention of one head for tokens [B, L, C].
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v) {
  const auto one_head = [](const Tensor& x) { return ops::reshape(x, {x.dim(0), x.dim(1), 1, x.dim(2)}); };
  AttentionArgs args;
  args.scale = 1 / std::sqrt(static_cast<float>(q.dim(2)));
  std::vector<Tensor> pieces;
  for (std::int64_t start = 0; start < q.dim(1); start += kQueriesAtOnce) {
    const std::int64_t count = std::min(kQueriesAtOnce, q.dim(1) - start);
    const Tensor queries = ops::narrow(q, 1, start, count);
    pieces.push_back(ops::attention(one_head(queries), one_head(k), one_head(v), {}, args));
  }
  const Tensor all = pieces.size() == 1 ? pieces[0] : ops::concat(pieces, 1);
  return ops::reshape(all, q.shape());
}

void check_images(const char* what, const Tensor& x, int channels, int least) {
  const bool good =
      x.defined() && x.rank() == 4 && x.dim(1) == channels && x.dim(2) >= least && x.dim(3) >= least;
  require(good && x.dim(0) > 0, "ERR_SHAPE", what, ": expected [B, ", channels,
          ", h, w] with h and w of at least ", least, ", got ", x.shape());
}

Tensor as_f32(const Tensor& x) { return x.dtype() == DType::f32 ? x : ops::cast(x, DType::f32); }

}  // namespace

// ---- blocks ---------------------------------------------------------------------------------------------

ResnetBlock::ResnetBlock(Module& parent, std::string name, int in, int out, int groups)
    : Module(parent, std::move(name)),
      norm1_(*this, "norm1", in, groups, kNormEps),
      conv1_(*this, "conv1", in, out, 3, kSame),
      norm2_(*this, "norm2", out, groups, kNormEps),
      conv2_(*this, "conv2", out, out, 3, kSame),
      conv_shortcut_(in == out ? nullptr : pointwise(*this, "conv_shortcut", in, out)) {}

Tensor ResnetBlock::operator()(const Tensor& x) const {
  const BlockScope scope([this] { return full_name(); });
  scope.input(0, x);
  const Tensor h = conv2_(norm2_.silu(conv1_(norm1_.silu(x))));
  const Tensor result = ops::add(conv_shortcut_ ? (*conv_shortcut_)(x) : x, h);
  scope.output(0, result);
  return result;
}

PixelAttention::PixelAttention(Module& parent, std::string name, int channels, int groups)
    : Module(parent, std::move(name)),
      group_norm_(*this, "group_norm", channels, groups, kNormEps),
      qkv_(*this, {{"to_q", channels}, {"to_k", channels}, {"to_v", channels}}, channels),
      to_out_(*this, "to_out.0", channels, channels) {}

Tensor PixelAttention::operator()(const Tensor& x) const {
  const BlockScope scope([this] { return full_name(); });
  scope.input(0, x);
  const std::int64_t batch = x.dim(0), channels = x.dim(1);
  const Tensor pixels = ops::transpose(ops::reshape(group_norm_(x), {batch, channels, -1}), 1, 2);
  const auto qkv = qkv_.parts(pixels);
  const Tensor y = to_out_(attend(qkv[0], qkv[1], qkv[2]));
  const Tensor result = ops::add(x, ops::reshape(ops::transpose(y, 1, 2), x.shape()));
  scope.output(0, result);
  return result;
}

MidBlock::MidBlock(Module& parent, std::string name, int channels, const AutoencoderConfig& config)
    : Module(parent, std::move(name)),
      first_(*this, "resnets.0", channels, channels, config.norm_num_groups),
      attention_(config.mid_block_add_attention ? std::make_unique<PixelAttention>(
                                                      *this, "attentions.0", channels, config.norm_num_groups)
                                                : nullptr),
      second_(*this, "resnets.1", channels, channels, config.norm_num_groups) {}

Tensor MidBlock::operator()(const Tensor& x) const {
  const Tensor h = first_(x);
  return second_(attention_ ? (*attention_)(h) : h);
}

Level::Level(Module& parent, std::string name, int in, int out, int resnets, int groups, Next next)
    : Module(parent, std::move(name)), next_(next) {
  for (int i = 0; i < resnets; ++i) {
    resnets_.emplace_back(*this, "resnets." + std::to_string(i), i == 0 ? in : out, out, groups);
  }
  if (next == Next::same) return;
  const bool up = next == Next::up;
  resample_ = std::make_unique<nn::Conv2d>(*this, up ? "upsamplers.0.conv" : "downsamplers.0.conv", out, out,
                                           3, up ? kSame : kHalf);
}

Tensor Level::operator()(const Tensor& x) const {
  Tensor h = x;
  for (const ResnetBlock& resnet : resnets_) h = resnet(h);
  if (!resample_) return h;
  return (*resample_)(next_ == Next::up ? ops::upsample_nearest_2x(h) : h);
}

// ---- encoder and decoder --------------------------------------------------------------------------------

AutoencoderEncoder::AutoencoderEncoder(Module& parent, const AutoencoderConfig& config)
    : Module(parent, "encoder"),
      conv_in_(*this, "conv_in", config.in_channels, config.block_out_channels.front(), 3, kSame),
      mid_block_(*this, "mid_block", config.block_out_channels.back(), config),
      conv_norm_out_(*this, "conv_norm_out", config.block_out_channels.back(), config.norm_num_groups,
                     kNormEps),
      conv_out_(*this, "conv_out", config.block_out_channels.back(), 2 * config.latent_channels, 3, kSame) {
  const auto& channels = config.block_out_channels;
  for (std::size_t i = 0; i < channels.size(); ++i) {
    down_blocks_.emplace_back(*this, "down_blocks." + std::to_string(i), channels[i == 0 ? 0 : i - 1],
                              channels[i], config.layers_per_block, config.norm_num_groups,
                              i + 1 < channels.size() ? Level::Next::down : Level::Next::same);
  }
}

Tensor AutoencoderEncoder::operator()(const Tensor& images) const {
  Tensor h = conv_in_(images);
  for (const Level& level : down_blocks_) h = level(h);
  return conv_out_(conv_norm_out_.silu(mid_block_(h)));
}

AutoencoderDecoder::AutoencoderDecoder(Module& parent, const AutoencoderConfig& config)
    : Module(parent, "decoder"),
      conv_in_(*this, "conv_in", config.latent_channels, config.block_out_channels.back(), 3, kSame),
      mid_block_(*this, "mid_block", config.block_out_channels.back(), config),
      conv_norm_out_(*this, "conv_norm_out", config.block_out_channels.front(), config.norm_num_groups,
                     kNormEps),
      conv_out_(*this, "conv_out", config.block_out_channels.front(), config.out_channels, 3, kSame) {
  const std::vector<int> channels(config.block_out_channels.rbegin(), config.block_out_channels.rend());
  for (std::size_t i = 0; i < channels.size(); ++i) {
    up_blocks_.emplace_back(*this, "up_blocks." + std::to_string(i), channels[i == 0 ? 0 : i - 1],
                            channels[i], config.layers_per_block + 1, config.norm_num_groups,
                            i + 1 < channels.size() ? Level::Next::up : Level::Next::same);
  }
}

Tensor AutoencoderDecoder::operator()(const Tensor& latents) const {
  Tensor h = mid_block_(conv_in_(latents));
  for (const Level& level : up_blocks_) h = level(h);
  return conv_out_(conv_norm_out_.silu(h));
}

// ---- the whole ------------------------------------------------------------------------------------------

AutoencoderKL::AutoencoderKL(const AutoencoderConfig& config) : config_(config) {
  require(!config.block_out_channels.empty(), "ERR_SHAPE",
          "autoencoder: expected block_out_channels, got none");
  const int latent = config.latent_channels;
  if (config.with_encoder) {
    encoder_ = std::make_unique<AutoencoderEncoder>(*this, config);
    if (config.use_quant_conv) quant_conv_ = pointwise(*this, "quant_conv", 2 * latent, 2 * latent);
  }
  if (config.with_decoder) {
    if (config.use_post_quant_conv) post_quant_conv_ = pointwise(*this, "post_quant_conv", latent, latent);
    decoder_ = std::make_unique<AutoencoderDecoder>(*this, config);
  }
}

Tensor AutoencoderKL::encode(const Tensor& images) const {
  require(encoder_ != nullptr, "ERR_SHAPE",
          "autoencoder encode: expected a model with an encoder, got a decoder only");
  check_images("autoencoder encode", images, config_.in_channels, factor());
  const BlockScope whole("vae");
  whole.input(0, images);
  const Tensor moments = (*encoder_)(activation(images));
  const Tensor result = as_f32(quant_conv_ ? (*quant_conv_)(moments) : moments);
  whole.output(0, result);
  return result;
}

Tensor AutoencoderKL::decode(const Tensor& latents) const {
  require(decoder_ != nullptr, "ERR_SHAPE",
          "autoencoder decode: expected a model with a decoder, got an encoder only");
  check_images("autoencoder decode", latents, config_.latent_channels, 1);
  const BlockScope whole("vae");
  whole.input(0, latents);
  const Tensor z = activation(latents);
  const Tensor result = as_f32((*decoder_)(post_quant_conv_ ? (*post_quant_conv_)(z) : z));
  whole.output(0, result);
  return result;
}

}  // namespace danceflux::models
