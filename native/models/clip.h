// The two towers of CLIP (Radford et al. 2021). Parameters carry the names of transformers' CLIPModel; the
// open_clip layout is renamed and cut by whoever loads it.
//
// Legend: B batch, L tokens, D width, H heads, P width of the space that both towers share.
#pragma once
#include <deque>
#include <memory>
#include <vector>

#include "nn/layers.h"

namespace danceflux::models {

/// What the blocks of either tower are made of.
struct ClipBlockConfig {
  int hidden_size = 768, intermediate_size = 3072;
  int num_hidden_layers = 12, num_attention_heads = 12;
  float layer_norm_eps = 1e-5f;
  UnaryOp hidden_act = UnaryOp::quick_gelu;  // or gelu_erf, gelu_tanh
};

struct ClipTextConfig : ClipBlockConfig {
  int vocab_size = 49408, max_position_embeddings = 77;
  int projection_dim = 0;  // 0: no text_projection, as in the text encoder of FLUX
  int eos_token_id = 2;    // 2, which old configs hold by mistake: the text ends at its largest id; otherwise
                           // at the first such id
};

struct ClipVisionConfig : ClipBlockConfig {
  int image_size = 224, patch_size = 14, num_channels = 3;
  int projection_dim = 0;  // 0: no visual_projection
};

class ClipBlock : public nn::Module {
 public:
  ClipBlock(Module& parent, std::string name, const ClipBlockConfig& config);
  Tensor operator()(const Tensor& x, bool causal) const;

 private:
  Tensor attention(const Tensor& x, bool causal) const;

  ClipBlockConfig config_;
  nn::LayerNorm layer_norm1_;
  nn::Linear qkv_, out_proj_;
  nn::LayerNorm layer_norm2_;
  nn::Linear fc1_, fc2_;
};

class ClipText : public nn::Module {
 public:
  explicit ClipText(const ClipTextConfig& config);
  struct Output {
    Tensor hidden;     // [B, L, D], after the final norm
    Tensor pooled;     // [B, D], the state where the text ends
    Tensor projected;  // [B, P], not normalised; undefined without projection
  };
  /// All f32. Throws ERR_SHAPE on an id outside the vocabulary, a wrong count or more tokens than there are
  /// positions.
  Output forward(const nn::TokenIds& ids) const;

 private:
  Tensor at_end_of_text(const Tensor& hidden, const nn::TokenIds& ids) const;

  ClipTextConfig config_;
  nn::Embedding token_embedding_, position_embedding_;
  std::deque<ClipBlock> layers_;
  nn::LayerNorm final_layer_norm_;
  std::unique_ptr<nn::Linear> text_projection_;
};

class ClipVision : public nn::Module {
 public:
  explicit ClipVision(const ClipVisionConfig& config);
  struct Output {
    Tensor hidden;     // [B, 1 + patches, D], before the last norm
    Tensor pooled;     // [B, D], the class token after the last norm
    Tensor projected;  // [B, P], not normalised; undefined without projection
  };
  /// images [B, num_channels, image_size, image_size], normalised. All f32. Throws ERR_SHAPE on another size.
  Output forward(const Tensor& images) const;

 private:
  Tensor embed(const Tensor& images) const;

  ClipVisionConfig config_;
  std::shared_ptr<nn::Parameter> class_embedding_;
  nn::Conv2d patch_embedding_;
  nn::Embedding position_embedding_;
  nn::LayerNorm pre_layrnorm_;  // sic, in the checkpoints too
  std::deque<ClipBlock> layers_;
  nn::LayerNorm post_layernorm_;
  std::unique_ptr<nn::Linear> visual_projection_;
};

/// Both towers, as scorers use them.
class ClipModel : public nn::Module {
 public:
  ClipModel(const ClipTextConfig& text_config, const ClipVisionConfig& vision_config);
  ClipText text;
  ClipVision vision;
};

/// Rows of unit length: x [..., P] -> x / |x|. A cosine is the dot product of two of them.
Tensor unit_rows(const Tensor& x);

}  // namespace danceflux::models
