// The encoder of T5 v1.1 (Raffel et al. 2020; gated GELU, no biases). Parameters carry the names of
// transformers' T5EncoderModel.
//
// Legend: B batch, L tokens, D width (d_model), H heads, K head width (d_kv).
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

#include "nn/layers.h"

namespace danceflux::models {

struct T5Config {
  int vocab_size = 32128;
  int d_model = 4096, d_kv = 64, d_ff = 10240;
  int num_layers = 24, num_heads = 64;
  int relative_attention_num_buckets = 32, relative_attention_max_distance = 128;
  float layer_norm_epsilon = 1e-6f;
};

/// In which bucket a key stands that is `relative` tokens after the query (bidirectional): half of the
/// buckets for each side, of these half for exact distances and half for logarithmic ones up to
/// `max_distance`.
int t5_bucket(int relative, int buckets, int max_distance);

class T5Block : public nn::Module {
 public:
  T5Block(Module& parent, std::string name, const T5Config& config);
  Tensor operator()(const Tensor& x, const Tensor& position_bias) const;

 private:
  Tensor attention(const Tensor& x, const Tensor& position_bias) const;

  T5Config config_;
  nn::Linear qkv_, o_;
  nn::RmsNorm attention_norm_;
  nn::Linear wi_, wo_;
  nn::RmsNorm ff_norm_;
};

class T5Encoder : public nn::Module {
 public:
  explicit T5Encoder(const T5Config& config);
  /// States after the final norm, [B, L, D] in f32. There is no mask: padding tokens are attended, as FLUX
  /// wants it. Throws ERR_SHAPE on an id outside the vocabulary or a wrong count.
  Tensor forward(const nn::TokenIds& ids) const;

 private:
  Tensor position_bias(std::int64_t length) const;

  T5Config config_;
  nn::Embedding shared_;
  std::deque<T5Block> blocks_;
  nn::Embedding relative_attention_bias_;
  nn::RmsNorm final_layer_norm_;
};

}  // namespace danceflux::models
