#include "models/flux.h"

#include <cmath>

#include "autograd/observer.h"
#include "core/error.h"
#include "models/flux_tables.h"

namespace danceflux::models {
namespace {

constexpr float kNormEps = 1e-6f;
constexpr std::size_t kRotationsKept = 8;

/// [B, n D] -> n views [B, D].
std::vector<Tensor> chunks(const Tensor& x, int n) {
  return ops::split(x, std::vector<std::int64_t>(static_cast<std::size_t>(n), x.dim(1) / n), 1);
}

/// [B, 3 n D] -> n modulations.
std::vector<Modulation> modulations(const Tensor& x, int n) {
  const std::vector<Tensor> parts = chunks(x, 3 * n);
  std::vector<Modulation> all;
  for (std::size_t i = 0; i < parts.size(); i += 3) all.push_back({parts[i], parts[i + 1], parts[i + 2]});
  return all;
}

Tensor modulated(const Tensor& x, const Modulation& m) {
  return ops::modulated_norm(x, m.scale, m.shift, kNormEps);
}

/// [B, L, H K] -> [B, L, H, K]
Tensor by_head(const Tensor& x, int heads) {
  return ops::reshape(x, {x.dim(0), x.dim(1), heads, x.dim(2) / heads});
}

Tensor join(const Tensor& text, const Tensor& image) {
  const Tensor both[] = {text, image};
  return ops::concat(both, 1);
}

/// softmax(q k^T / sqrt K) v: [B, L, H, K] -> [B, L, H K]
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v) {
  AttentionArgs args;
  args.scale = 1 / std::sqrt(static_cast<float>(q.dim(3)));
  return ops::reshape(ops::attention(q, k, v, {}, args), {q.dim(0), q.dim(1), -1});
}

// The published f16 weights overflow here; diffusers saturates the residual stream at the largest f16 and so
// must we.
Tensor saturated(const Tensor& x) {
  return x.dtype() == DType::f16 ? ops::unary(UnaryOp::clamp, x, -65504, 65504) : x;
}

std::vector<nn::Linear::Part> equal_parts(std::initializer_list<const char*> names, int rows) {
  std::vector<nn::Linear::Part> parts;
  for (const char* name : names) parts.push_back({name, rows});
  return parts;
}

}  // namespace

Rotation Rotation::tokens(std::int64_t start, std::int64_t length) const {
  return {cos.narrow(0, start, length), sin.narrow(0, start, length)};
}

Embedder::Embedder(Module& parent, std::string name, std::int64_t in, std::int64_t width)
    : Module(parent, std::move(name)),
      linear_1(*this, "linear_1", in, width),
      linear_2(*this, "linear_2", width, width) {}

Tensor Embedder::operator()(const Tensor& x) const { return linear_2(linear_1.activated(UnaryOp::silu, x)); }

// ---- double block ---------------------------------------------------------------------------------------

struct Stream::Names {
  const char *modulation, *q, *k, *v, *norm_q, *norm_k, *out, *ff_in, *ff_out;
};

static constexpr Stream::Names kImageNames{"norm1.linear",  "attn.to_q",     "attn.to_k",
                                           "attn.to_v",     "attn.norm_q",   "attn.norm_k",
                                           "attn.to_out.0", "ff.net.0.proj", "ff.net.2"};
static constexpr Stream::Names kTextNames{
    "norm1_context.linear", "attn.add_q_proj",       "attn.add_k_proj",
    "attn.add_v_proj",      "attn.norm_added_q",     "attn.norm_added_k",
    "attn.to_add_out",      "ff_context.net.0.proj", "ff_context.net.2"};

Stream::Stream(Module& parent, const FluxConfig& config, const Names& names)
    : Module(parent, ""),
      head_count_(config.num_attention_heads),
      modulation_(*this, names.modulation, config.width(), 6 * config.width()),
      qkv_(*this, equal_parts({names.q, names.k, names.v}, config.width()), config.width()),
      norm_q_(*this, names.norm_q, config.attention_head_dim, kNormEps),
      norm_k_(*this, names.norm_k, config.attention_head_dim, kNormEps),
      to_out_(*this, names.out, config.width(), config.width()),
      ff_in_(*this, names.ff_in, config.width(), 4 * config.width()),
      ff_out_(*this, names.ff_out, 4 * config.width(), config.width()) {}

Stream::Heads Stream::heads(const Tensor& x, const Modulation& modulation, const Rotation& rotation) const {
  const auto qkv = qkv_.parts(modulated(x, modulation));
  return {norm_q_.rotated(by_head(qkv[0], head_count_), rotation.cos, rotation.sin),
          norm_k_.rotated(by_head(qkv[1], head_count_), rotation.cos, rotation.sin),
          by_head(qkv[2], head_count_)};
}

Tensor Stream::add_attention(const Tensor& x, const Modulation& modulation, const Tensor& attended) const {
  return ops::gated_residual(x, modulation.gate, to_out_(attended));
}

Tensor Stream::add_mlp(const Tensor& x, const Modulation& modulation) const {
  const Tensor h = ff_in_.activated(UnaryOp::gelu_tanh, modulated(x, modulation));
  return ops::gated_residual(x, modulation.gate, ff_out_(h));
}

DoubleBlock::DoubleBlock(Module& parent, std::string name, const FluxConfig& config)
    : Module(parent, std::move(name)), image(*this, config, kImageNames), text(*this, config, kTextNames) {}

DoubleBlock::Tokens DoubleBlock::operator()(const Tokens& tokens, const Tokens& modulation,
                                            const Rotation& rotation) const {
  const BlockScope scope([this] { return full_name(); });
  scope.input(0, tokens.image);
  scope.input(1, tokens.text);
  const std::int64_t words = tokens.text.dim(1), patches = tokens.image.dim(1);
  const auto image_mods = modulations(modulation.image, 2), text_mods = modulations(modulation.text, 2);
  const auto t = text.heads(tokens.text, text_mods[0], rotation.tokens(0, words));
  const auto i = image.heads(tokens.image, image_mods[0], rotation.tokens(words, patches));
  const Tensor attended = attend(join(t.q, i.q), join(t.k, i.k), join(t.v, i.v));
  const Tensor x = image.add_attention(tokens.image, image_mods[0], ops::narrow(attended, 1, words, patches));
  const Tensor c = text.add_attention(tokens.text, text_mods[0], ops::narrow(attended, 1, 0, words));
  const Tokens result{image.add_mlp(x, image_mods[1]), saturated(text.add_mlp(c, text_mods[1]))};
  scope.output(0, result.image);
  scope.output(1, result.text);
  return result;
}

// ---- single block ---------------------------------------------------------------------------------------

SingleBlock::SingleBlock(Module& parent, std::string name, const FluxConfig& config)
    : Module(parent, std::move(name)),
      head_count_(config.num_attention_heads),
      modulation_(*this, "norm.linear", config.width(), 3 * config.width()),
      qkv_mlp_(*this,
               {{"attn.to_q", config.width()},
                {"attn.to_k", config.width()},
                {"attn.to_v", config.width()},
                {"proj_mlp", 4 * config.width()}},
               config.width()),
      norm_q_(*this, "attn.norm_q", config.attention_head_dim, kNormEps),
      norm_k_(*this, "attn.norm_k", config.attention_head_dim, kNormEps),
      proj_out_(*this, "proj_out", 5 * config.width(), config.width()) {}

Tensor SingleBlock::operator()(const Tensor& x, const Tensor& modulation, const Rotation& rotation) const {
  const BlockScope scope([this] { return full_name(); });
  scope.input(0, x);
  const Modulation m = modulations(modulation, 1)[0];
  const auto parts = qkv_mlp_.parts(modulated(x, m));
  const Tensor q = norm_q_.rotated(by_head(parts[0], head_count_), rotation.cos, rotation.sin);
  const Tensor k = norm_k_.rotated(by_head(parts[1], head_count_), rotation.cos, rotation.sin);
  const Tensor both[] = {attend(q, k, by_head(parts[2], head_count_)),
                         ops::unary(UnaryOp::gelu_tanh, parts[3])};
  const Tensor result = saturated(ops::gated_residual(x, m.gate, proj_out_(ops::concat(both, 2))));
  scope.output(0, result);
  return result;
}

// ---- the whole ------------------------------------------------------------------------------------------

FluxTransformer::FluxTransformer(const FluxConfig& config)
    : config_(config),
      time_text_embed_(*this, "time_text_embed"),
      timestep_embedder_(time_text_embed_, "timestep_embedder", kTimestepChannels, config.width()),
      guidance_embedder_(config.guidance_embeds
                             ? std::make_unique<Embedder>(time_text_embed_, "guidance_embedder",
                                                          kTimestepChannels, config.width())
                             : nullptr),
      text_embedder_(time_text_embed_, "text_embedder", config.pooled_projection_dim, config.width()),
      context_embedder_(*this, "context_embedder", config.joint_attention_dim, config.width()),
      x_embedder_(*this, "x_embedder", config.in_channels, config.width()),
      norm_out_(*this, "norm_out.linear", config.width(), 2 * config.width()),
      proj_out_(*this, "proj_out", config.width(),
                config.out_channels > 0 ? config.out_channels : config.in_channels) {
  const auto& axes = config_.axes_dims_rope;
  const bool even = axes[0] % 2 == 0 && axes[1] % 2 == 0 && axes[2] % 2 == 0;
  require(even && axes[0] + axes[1] + axes[2] == config_.attention_head_dim, "ERR_SHAPE",
          "flux: expected even axes_dims_rope that add up to attention_head_dim ", config_.attention_head_dim,
          ", got [", axes[0], ", ", axes[1], ", ", axes[2], "]");
  if (config_.out_channels <= 0) config_.out_channels = config_.in_channels;
  for (int i = 0; i < config_.num_layers; ++i) {
    transformer_blocks_.emplace_back(*this, "transformer_blocks." + std::to_string(i), config_);
  }
  for (int i = 0; i < config_.num_single_layers; ++i) {
    single_transformer_blocks_.emplace_back(*this, "single_transformer_blocks." + std::to_string(i), config_);
  }
}

namespace {

void check_shape(const char* what, const Tensor& x, const Shape& wanted, bool once_is_enough) {
  const bool defined = x.defined() && x.rank() == wanted.rank();
  bool good = defined && (x.dim(0) == wanted[0] || (once_is_enough && x.dim(0) == 1));
  for (int axis = 1; good && axis < wanted.rank(); ++axis) good = x.dim(axis) == wanted[axis];
  require(good, "ERR_SHAPE", "flux: expected ", what, " of shape ", wanted,
          once_is_enough ? " (or 1 for all)" : "", ", got ",
          defined || x.defined() ? x.shape().string() : "nothing");
}

}  // namespace

/// Hands the blocks their modulations in order: made for them, or cut from rows that were made before.
class FluxTransformer::Steering {
 public:
  Steering(Tensor temb, Tensor ready) : temb_(std::move(temb)), ready_(std::move(ready)) {}
  template <class Make>
  Tensor next(std::int64_t width, const Make& make) {
    if (!ready_) return make(temb_);
    at_ += width;
    return ops::narrow(ready_, 1, at_ - width, width);
  }

 private:
  Tensor temb_, ready_;
  std::int64_t at_ = 0;
};

void FluxTransformer::check(const FluxInputs& in) const {
  const std::int64_t batch = in.latents.defined() && in.latents.rank() == 3 ? in.latents.dim(0) : 1;
  const std::int64_t words = in.text.defined() && in.text.rank() == 3 ? in.text.dim(1) : 1;
  require(in.grid_rows > 0 && in.grid_cols > 0, "ERR_SHAPE", "flux: expected a grid of at least 1 x 1, got ",
          in.grid_rows, " x ", in.grid_cols);
  require(batch > 0 && words > 0, "ERR_SHAPE", "flux: expected at least one row and one text token, got ",
          batch, " and ", words);
  check_shape("latents", in.latents, {batch, std::int64_t{in.grid_rows} * in.grid_cols, config_.in_channels},
              false);
  check_shape("text", in.text, {batch, words, config_.joint_attention_dim}, true);
  if (in.modulations) return check_shape("modulations", in.modulations, {batch, modulation_width()}, false);
  check_steering(in, batch);
}

void FluxTransformer::check_steering(const FluxInputs& in, std::int64_t batch) const {
  check_shape("pooled", in.pooled, {batch, config_.pooled_projection_dim}, true);
  require(static_cast<std::int64_t>(in.timesteps.size()) == batch, "ERR_SHAPE", "flux: expected ", batch,
          " timesteps, got ", in.timesteps.size());
  const std::int64_t guidances = config_.guidance_embeds ? batch : 0;
  require(static_cast<std::int64_t>(in.guidance.size()) == guidances, "ERR_SHAPE", "flux: expected ",
          guidances, " guidance values (guidance_embeds is ", config_.guidance_embeds ? "true" : "false",
          "), got ", in.guidance.size());
}

Tensor FluxTransformer::time_text_embedding(const FluxInputs& in) const {
  const auto embed = [&](const Embedder& embedder, const std::vector<float>& numbers) {
    const Shape shape{static_cast<std::int64_t>(numbers.size()), kTimestepChannels};
    return embedder(activation(upload(shape, timestep_embedding(numbers))));
  };
  Tensor temb = embed(timestep_embedder_, in.timesteps);
  if (guidance_embedder_) temb = ops::add(temb, embed(*guidance_embedder_, in.guidance));
  return ops::add(temb, text_embedder_(activation(in.pooled)));
}

std::int64_t FluxTransformer::modulation_width() const {
  return std::int64_t{config_.width()} * (12 * config_.num_layers + 3 * config_.num_single_layers + 2);
}

Tensor FluxTransformer::modulations(const std::vector<float>& timesteps, const std::vector<float>& guidance,
                                    const Tensor& pooled) {
  FluxInputs in;
  in.timesteps = timesteps;
  in.guidance = guidance;
  in.pooled = pooled;
  require(!timesteps.empty(), "ERR_SHAPE", "flux: expected at least one timestep, got none");
  check_steering(in, static_cast<std::int64_t>(timesteps.size()));
  const Tensor temb = ops::silu(time_text_embedding(in));
  std::vector<Tensor> parts;  // in the order in which forward() asks
  for (const DoubleBlock& block : transformer_blocks_) {
    parts.push_back(block.image.modulation(temb));
    parts.push_back(block.text.modulation(temb));
  }
  for (const SingleBlock& block : single_transformer_blocks_) parts.push_back(block.modulation(temb));
  parts.push_back(norm_out_(temb));
  return ops::concat(parts, 1);
}

Rotation FluxTransformer::rotation(int text, int rows, int cols) {
  const auto key = std::tuple<const Backend*, int, int, int>(&device(), text, rows, cols);
  if (const auto found = rotations_.find(key); found != rotations_.end()) return found->second;
  if (rotations_.size() >= kRotationsKept) rotations_.clear();
  const RopeTable table = rope_table(text, rows, cols, config_.axes_dims_rope, config_.theta);
  const Shape shape{std::int64_t{text} + std::int64_t{rows} * cols, config_.attention_head_dim / 2};
  return rotations_[key] = {upload(shape, table.cos), upload(shape, table.sin)};
}

Tensor FluxTransformer::network(const Tensor& latents, const Tensor& text, Steering steering,
                                const Rotation& turn, int recompute_blocks) const {
  const std::int64_t batch = latents.dim(0), words = text.dim(1), patches = latents.dim(1),
                     width = config_.width();
  // A block's modulation stays outside its recomputed part: temb then gathers its gradients from all blocks
  // in one order, whether blocks are run again or not.
  int block_index = 0;
  const auto run = [&](std::function<std::vector<Tensor>(std::span<const Tensor>)> block,
                       std::vector<Tensor> inputs) {
    const bool again = recompute_blocks < 0 || block_index < recompute_blocks;
    ++block_index;
    return again ? checkpoint(std::move(block), std::move(inputs)) : block(inputs);
  };

  Tensor image = x_embedder_(activation(latents));
  Tensor words_in = ops::expand(context_embedder_(activation(text)), {batch, words, width});
  for (const DoubleBlock& block : transformer_blocks_) {
    const auto make = [&](const Stream& stream) {
      return steering.next(6 * width, [&](const Tensor& temb) { return stream.modulation(temb); });
    };
    const Tensor image_steering = make(block.image), text_steering = make(block.text);
    const auto both = run(
        [&block, turn](std::span<const Tensor> x) {
          const auto [i, t] = block({x[0], x[1]}, {x[2], x[3]}, turn);
          return std::vector<Tensor>{i, t};
        },
        {image, words_in, image_steering, text_steering});
    image = both[0];
    words_in = both[1];
  }
  Tensor x = join(words_in, image);
  for (const SingleBlock& block : single_transformer_blocks_) {
    const Tensor steered =
        steering.next(3 * width, [&](const Tensor& temb) { return block.modulation(temb); });
    x = run(
        [&block, turn](std::span<const Tensor> in) { return std::vector<Tensor>{block(in[0], in[1], turn)}; },
        {x, steered})[0];
  }
  // Scale, then shift: the one place where they come in this order.
  const auto last = chunks(steering.next(2 * width, [&](const Tensor& temb) { return norm_out_(temb); }), 2);
  const Tensor velocity = proj_out_(modulated(ops::narrow(x, 1, words, patches), {last[1], last[0], {}}));
  return velocity.dtype() == DType::f32 ? velocity : ops::cast(velocity, DType::f32);
}

Tensor FluxTransformer::recurring_network(const FluxInputs& in, const Rotation& turn) const {
  const Tensor inputs[] = {in.latents, in.text, in.modulations, turn.cos, turn.sin};
  std::string key = "flux " + std::to_string(layout());
  for (const Tensor& each : inputs) key += " " + std::string(name_of(each.dtype())) + each.shape().string();
  const auto work = [this](std::span<const Tensor> x) {
    return std::vector<Tensor>{network(x[0], x[1], Steering({}, x[2]), {x[3], x[4]}, 0)};
  };
  return device().recurring(key, inputs, work)[0];
}

Tensor FluxTransformer::forward(const FluxInputs& in, int recompute_blocks) {
  check(in);
  const BlockScope whole("flux");
  whole.input(0, in.latents);
  whole.input(1, in.text);
  if (in.pooled) whole.input(2, in.pooled);
  const Rotation turn = rotation(static_cast<int>(in.text.dim(1)), in.grid_rows, in.grid_cols);
  const bool recurring = in.modulations && !Tape::current() && !Observer::current();
  const auto steering = [&] {
    return Steering(in.modulations ? Tensor{} : ops::silu(time_text_embedding(in)), in.modulations);
  };
  const Tensor result = recurring ? recurring_network(in, turn)
                                  : network(in.latents, in.text, steering(), turn, recompute_blocks);
  whole.output(0, result);
  return result;
}

}  // namespace danceflux::models
