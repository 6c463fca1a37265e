#include "models/t5.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "autograd/observer.h"
#include "core/error.h"

namespace danceflux::models {

int t5_bucket(int relative, int buckets, int max_distance) {
  const int side = buckets / 2, exact = side / 2;
  const int base = relative > 0 ? side : 0;
  const int distance = std::abs(relative);
  if (distance < exact) return base + distance;
  // f32 and in this order, as the published models were trained: a boundary may fall on a rounding
  const float octaves = std::log(static_cast<float>(distance) / static_cast<float>(exact)) /
                        static_cast<float>(std::log(static_cast<double>(max_distance) / exact));
  const int far = exact + static_cast<int>(octaves * static_cast<float>(side - exact));
  return base + std::min(far, side - 1);
}

// ---- one block ------------------------------------------------------------------------------------------

T5Block::T5Block(Module& parent, std::string name, const T5Config& config)
    : Module(parent, std::move(name)),
      config_(config),
      qkv_(*this,
           {{"layer.0.SelfAttention.q", config.num_heads * config.d_kv},
            {"layer.0.SelfAttention.k", config.num_heads * config.d_kv},
            {"layer.0.SelfAttention.v", config.num_heads * config.d_kv}},
           config.d_model, false),
      o_(*this, "layer.0.SelfAttention.o", config.num_heads * config.d_kv, config.d_model, false),
      attention_norm_(*this, "layer.0.layer_norm", config.d_model, config.layer_norm_epsilon),
      wi_(*this, {{"layer.1.DenseReluDense.wi_0", config.d_ff}, {"layer.1.DenseReluDense.wi_1", config.d_ff}},
          config.d_model, false),
      wo_(*this, "layer.1.DenseReluDense.wo", config.d_ff, config.d_model, false),
      ff_norm_(*this, "layer.1.layer_norm", config.d_model, config.layer_norm_epsilon) {}

Tensor T5Block::attention(const Tensor& x, const Tensor& position_bias) const {
  auto qkv = qkv_.parts(x);
  for (Tensor& part : qkv) part = ops::reshape(part, {x.dim(0), x.dim(1), config_.num_heads, config_.d_kv});
  const AttentionArgs unscaled;  // T5 has no 1 / sqrt(K): its initialisation holds it
  const Tensor y = ops::attention(qkv[0], qkv[1], qkv[2], position_bias, unscaled);
  return o_(ops::reshape(y, {x.dim(0), x.dim(1), -1}));
}

Tensor T5Block::operator()(const Tensor& x, const Tensor& position_bias) const {
  const BlockScope scope([this] { return full_name(); });
  scope.input(0, x);
  const Tensor y = ops::add(x, attention(attention_norm_(x), position_bias));
  const auto wi = wi_.parts(ff_norm_(y));
  const Tensor result = ops::add(y, wo_(ops::mul(ops::unary(UnaryOp::gelu_tanh, wi[0]), wi[1])));
  scope.output(0, result);
  return result;
}

// ---- the encoder ----------------------------------------------------------------------------------------

T5Encoder::T5Encoder(const T5Config& config)
    : config_(config),
      shared_(*this, "shared", config.vocab_size, config.d_model),
      relative_attention_bias_(*this, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
                               config.relative_attention_num_buckets, config.num_heads),
      final_layer_norm_(*this, "encoder.final_layer_norm", config.d_model, config.layer_norm_epsilon) {
  for (int i = 0; i < config_.num_layers; ++i) {
    blocks_.emplace_back(*this, "encoder.block." + std::to_string(i), config_);
  }
}

// [1, H, L, L]: one for all blocks and all rows of the batch.
Tensor T5Encoder::position_bias(std::int64_t length) const {
  const int count = static_cast<int>(length);
  std::vector<std::int32_t> buckets;
  buckets.reserve(static_cast<std::size_t>(length * length));
  for (int query = 0; query < count; ++query) {
    for (int key = 0; key < count; ++key) {
      buckets.push_back(t5_bucket(key - query, config_.relative_attention_num_buckets,
                                  config_.relative_attention_max_distance));
    }
  }
  const Tensor rows = relative_attention_bias_({buckets, length, length});  // [Lq, Lk, H]
  return ops::contiguous(ops::reshape(ops::permute(rows, {2, 0, 1}), {1, config_.num_heads, length, length}));
}

Tensor T5Encoder::forward(const nn::TokenIds& ids) const {
  require(ids.batch > 0 && ids.length > 0, "ERR_SHAPE", "t5: expected at least one token, got ", ids.batch,
          " x ", ids.length);
  const BlockScope whole("t5");
  const Tensor bias = position_bias(ids.length);
  Tensor x = shared_(ids);
  for (const T5Block& block : blocks_) x = block(x, bias);
  x = final_layer_norm_(x);
  const Tensor result = x.dtype() == DType::f32 ? x : ops::cast(x, DType::f32);
  whole.output(0, result);
  return result;
}

}  // namespace danceflux::models
