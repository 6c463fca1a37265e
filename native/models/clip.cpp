#include "models/clip.h"

#include <algorithm>
#include <cmath>

#include "autograd/observer.h"
#include "core/error.h"

namespace danceflux::models {
namespace {

constexpr int kLegacyEos = 2;

Tensor as_f32(const Tensor& x) { return x.dtype() == DType::f32 ? x : ops::cast(x, DType::f32); }

std::int64_t patches_per_side(const ClipVisionConfig& config) {
  return config.image_size / config.patch_size;
}

}  // namespace

Tensor unit_rows(const Tensor& x) {
  const Tensor squares = ops::sum(ops::unary(UnaryOp::square, x), {x.rank() - 1}, true);
  return ops::mul(x, ops::unary(UnaryOp::rsqrt, squares));
}

// ---- a block of either tower ----------------------------------------------------------------------------

ClipBlock::ClipBlock(Module& parent, std::string name, const ClipBlockConfig& config)
    : Module(parent, std::move(name)),
      config_(config),
      layer_norm1_(*this, "layer_norm1", config.hidden_size, config.layer_norm_eps),
      qkv_(*this,
           {{"self_attn.q_proj", config.hidden_size},
            {"self_attn.k_proj", config.hidden_size},
            {"self_attn.v_proj", config.hidden_size}},
           config.hidden_size),
      out_proj_(*this, "self_attn.out_proj", config.hidden_size, config.hidden_size),
      layer_norm2_(*this, "layer_norm2", config.hidden_size, config.layer_norm_eps),
      fc1_(*this, "mlp.fc1", config.hidden_size, config.intermediate_size),
      fc2_(*this, "mlp.fc2", config.intermediate_size, config.hidden_size) {
  require(config.num_attention_heads > 0 && config.hidden_size % config.num_attention_heads == 0, "ERR_SHAPE",
          "clip: expected num_attention_heads that divide hidden_size ", config.hidden_size, ", got ",
          config.num_attention_heads);
}

Tensor ClipBlock::attention(const Tensor& x, bool causal) const {
  const int width = config_.hidden_size / config_.num_attention_heads;
  auto qkv = qkv_.parts(x);
  for (Tensor& part : qkv)
    part = ops::reshape(part, {x.dim(0), x.dim(1), config_.num_attention_heads, width});
  AttentionArgs args;
  args.scale = 1 / std::sqrt(static_cast<float>(width));
  args.causal = causal;
  return out_proj_(ops::reshape(ops::attention(qkv[0], qkv[1], qkv[2], {}, args), {x.dim(0), x.dim(1), -1}));
}

Tensor ClipBlock::operator()(const Tensor& x, bool causal) const {
  const BlockScope scope([this] { return full_name(); });
  scope.input(0, x);
  const Tensor y = ops::add(x, attention(layer_norm1_(x), causal));
  const Tensor result = ops::add(y, fc2_(fc1_.activated(config_.hidden_act, layer_norm2_(y))));
  scope.output(0, result);
  return result;
}

// ---- text -----------------------------------------------------------------------------------------------

ClipText::ClipText(const ClipTextConfig& config)
    : config_(config),
      token_embedding_(*this, "text_model.embeddings.token_embedding", config.vocab_size, config.hidden_size),
      position_embedding_(*this, "text_model.embeddings.position_embedding", config.max_position_embeddings,
                          config.hidden_size),
      final_layer_norm_(*this, "text_model.final_layer_norm", config.hidden_size, config.layer_norm_eps) {
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    layers_.emplace_back(*this, "text_model.encoder.layers." + std::to_string(i), config);
  }
  if (config.projection_dim > 0) {
    text_projection_ = std::make_unique<nn::Linear>(*this, "text_projection", config.hidden_size,
                                                    config.projection_dim, false);
  }
}

Tensor ClipText::at_end_of_text(const Tensor& hidden, const nn::TokenIds& ids) const {
  std::vector<std::int32_t> rows;
  for (std::int64_t b = 0; b < ids.batch; ++b) {
    const auto text =
        ids.values.subspan(static_cast<std::size_t>(b * ids.length), static_cast<std::size_t>(ids.length));
    const auto end = config_.eos_token_id == kLegacyEos
                         ? std::max_element(text.begin(), text.end())
                         : std::find(text.begin(), text.end(), config_.eos_token_id);
    const std::int64_t position =
        end == text.end() ? 0 : end - text.begin();  // without an end: the first, as transformers does
    rows.push_back(static_cast<std::int32_t>(b * ids.length + position));
  }
  return ops::embedding(ops::reshape(hidden, {ids.batch * ids.length, config_.hidden_size}),
                        upload({ids.batch}, rows), rows);
}

ClipText::Output ClipText::forward(const nn::TokenIds& ids) const {
  require(ids.batch > 0 && ids.length > 0 && ids.length <= config_.max_position_embeddings, "ERR_SHAPE",
          "clip text: expected 1 to ", config_.max_position_embeddings, " tokens, got ", ids.length);
  const BlockScope whole("clip");
  Tensor x = ops::add(token_embedding_(ids), position_embedding_.first(ids.length));
  for (const ClipBlock& layer : layers_) x = layer(x, true);
  const Tensor hidden = final_layer_norm_(x);
  const Tensor pooled = at_end_of_text(hidden, ids);
  whole.output(0, hidden);
  whole.output(1, pooled);
  return {as_f32(hidden), as_f32(pooled), text_projection_ ? as_f32((*text_projection_)(pooled)) : Tensor()};
}

// ---- vision ---------------------------------------------------------------------------------------------

ClipVision::ClipVision(const ClipVisionConfig& config)
    : config_(config),
      class_embedding_(
          parameter("vision_model.embeddings.class_embedding", {config.hidden_size}, nn::ParameterKind::f32)),
      patch_embedding_(*this, "vision_model.embeddings.patch_embedding", config.num_channels,
                       config.hidden_size, config.patch_size, ConvArgs{.stride = config.patch_size}, false),
      position_embedding_(*this, "vision_model.embeddings.position_embedding",
                          1 + patches_per_side(config) * patches_per_side(config), config.hidden_size),
      pre_layrnorm_(*this, "vision_model.pre_layrnorm", config.hidden_size, config.layer_norm_eps),
      post_layernorm_(*this, "vision_model.post_layernorm", config.hidden_size, config.layer_norm_eps) {
  for (int i = 0; i < config.num_hidden_layers; ++i) {
    layers_.emplace_back(*this, "vision_model.encoder.layers." + std::to_string(i), config);
  }
  if (config.projection_dim > 0) {
    visual_projection_ = std::make_unique<nn::Linear>(*this, "visual_projection", config.hidden_size,
                                                      config.projection_dim, false);
  }
}

// [B, 1 + patches, D]: the class token, then the patches row by row.
Tensor ClipVision::embed(const Tensor& images) const {
  const std::int64_t batch = images.dim(0), width = config_.hidden_size;
  const Tensor grid = patch_embedding_(activation(images));
  const Tensor patches = ops::transpose(ops::reshape(grid, {batch, width, -1}), 1, 2);
  const Tensor first =
      ops::expand(ops::reshape(activation(class_embedding_->value), {1, 1, width}), {batch, 1, width});
  const Tensor both[] = {first, patches};
  const std::int64_t tokens = 1 + patches.dim(1);
  return ops::add(ops::concat(both, 1), position_embedding_.first(tokens));
}

ClipVision::Output ClipVision::forward(const Tensor& images) const {
  const Shape wanted{images.rank() == 4 ? images.dim(0) : 1, config_.num_channels, config_.image_size,
                     config_.image_size};
  require(images.defined() && images.shape() == wanted, "ERR_SHAPE", "clip vision: expected images of shape ",
          wanted, ", got ", images.shape());
  const BlockScope whole("clip");
  whole.input(0, images);
  Tensor x = pre_layrnorm_(embed(images));
  for (const ClipBlock& layer : layers_) x = layer(x, false);
  const Tensor class_token = ops::reshape(ops::narrow(x, 1, 0, 1), {images.dim(0), config_.hidden_size});
  const Tensor pooled = post_layernorm_(class_token);
  whole.output(0, pooled);
  return {as_f32(x), as_f32(pooled), visual_projection_ ? as_f32((*visual_projection_)(pooled)) : Tensor()};
}

// ---- both -----------------------------------------------------------------------------------------------

ClipModel::ClipModel(const ClipTextConfig& text_config, const ClipVisionConfig& vision_config)
    : text(text_config), vision(vision_config) {
  require(text_config.projection_dim > 0 && text_config.projection_dim == vision_config.projection_dim,
          "ERR_SHAPE", "clip: expected one projection_dim for both towers, got ", text_config.projection_dim,
          " and ", vision_config.projection_dim);
  adopt(text);
  adopt(vision);
}

}  // namespace danceflux::models
