// Text encoders, CLIP, the autoencoder and picture preparation against transformers, open_clip, diffusers and
// torchvision. (FLUX: flux_test.cpp.)
#include <cmath>

#include "goldens.h"
#include "harness.h"
#include "models/autoencoder.h"
#include "models/clip.h"
#include "models/image_math.h"
#include "models/t5.h"
#include "ops/ops.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

constexpr double kForward = 1e-5;  // f32, relative error norm

void check_golden(const std::string& what, const Tensor& got, const Golden& wanted,
                  double tolerance = kForward) {
  const double error = relative_error(got, wanted);
  if (!(error <= tolerance))
    fail_at(__FILE__, __LINE__, what, ": relative error ", error, " above ", tolerance);
}

void for_each_run(std::initializer_list<const char*> cases,
                  const std::function<void(const GoldenCase&, Backend&)>& test) {
  for (const char* name : cases) {
    const GoldenCase source = read_case(name);
    for (const auto& device : model_devices()) test(source, *device);
  }
}

UnaryOp activation_of(const std::string& name) {
  return name == "quick_gelu" ? UnaryOp::quick_gelu : UnaryOp::gelu_erf;
}

void read_blocks(models::ClipBlockConfig& config, const Value& json) {
  config.hidden_size = json.integer("hidden_size");
  config.intermediate_size = json.integer("intermediate_size");
  config.num_hidden_layers = json.integer("num_hidden_layers");
  config.num_attention_heads = json.integer("num_attention_heads");
  config.layer_norm_eps = static_cast<float>(json["layer_norm_eps"].number());
  config.hidden_act = activation_of(json["hidden_act"].text());
}

models::ClipTextConfig text_config(const Value& json, int projection) {
  models::ClipTextConfig config;
  read_blocks(config, json);
  config.vocab_size = json.integer("vocab_size");
  config.max_position_embeddings = json.integer("max_position_embeddings");
  config.eos_token_id = json.integer("eos_token_id");
  config.projection_dim = projection;
  return config;
}

models::ClipVisionConfig vision_config(const Value& json, int projection) {
  models::ClipVisionConfig config;
  read_blocks(config, json);
  config.image_size = json.integer("image_size");
  config.patch_size = json.integer("patch_size");
  config.num_channels = json.integer("num_channels");
  config.projection_dim = projection;
  return config;
}

Tensor cosines(const Tensor& images, const Tensor& texts) {
  return ops::matmul(models::unit_rows(images), ops::transpose(models::unit_rows(texts), 0, 1));
}

models::T5Config t5_config(const Value& json) {
  models::T5Config config;
  config.vocab_size = json.integer("vocab_size");
  config.d_model = json.integer("d_model");
  config.d_kv = json.integer("d_kv");
  config.d_ff = json.integer("d_ff");
  config.num_layers = json.integer("num_layers");
  config.num_heads = json.integer("num_heads");
  config.relative_attention_num_buckets = json.integer("relative_attention_num_buckets");
  config.relative_attention_max_distance = json.integer("relative_attention_max_distance");
  config.layer_norm_epsilon = static_cast<float>(json["layer_norm_epsilon"].number());
  return config;
}

models::AutoencoderConfig autoencoder_config(const Value& json) {
  models::AutoencoderConfig config;
  config.in_channels = json.integer("in_channels");
  config.out_channels = json.integer("out_channels");
  config.latent_channels = json.integer("latent_channels");
  config.block_out_channels.clear();
  for (const std::int64_t channels : json["block_out_channels"].shape()) {
    config.block_out_channels.push_back(static_cast<int>(channels));
  }
  config.layers_per_block = json.integer("layers_per_block");
  config.norm_num_groups = json.integer("norm_num_groups");
  config.mid_block_add_attention = json.flag("mid_block_add_attention");
  config.use_quant_conv = json.flag("use_quant_conv");
  config.use_post_quant_conv = json.flag("use_post_quant_conv");
  return config;
}

nn::TokenIds token_ids(const std::vector<std::int32_t>& ids, const Shape& shape) {
  return {ids, shape[0], shape[1]};
}

// ---- open_clip's layout: what becomes of each of its tensors
// -----------------------------------------------

struct OpenClipTower {
  models::ClipBlockConfig blocks;
  std::string prefix, ours;
};

std::vector<std::pair<std::string, std::string>> replacements(bool vision) {
  std::vector<std::pair<std::string, std::string>> table{
      {"transformer.resblocks.", vision ? "vision_model.encoder.layers." : "text_model.encoder.layers."},
      {"ln_1", "layer_norm1"},
      {"ln_2", "layer_norm2"},
      {"attn.out_proj", "self_attn.out_proj"},
      {"mlp.c_fc", "mlp.fc1"},
      {"mlp.c_proj", "mlp.fc2"},
      {"ln_pre", "vision_model.pre_layrnorm"},
      {"ln_post", "vision_model.post_layernorm"},
      {"ln_final", "text_model.final_layer_norm"},
      {"token_embedding", "text_model.embeddings.token_embedding"},
      {"class_embedding", "vision_model.embeddings.class_embedding"},
      {"conv1", "vision_model.embeddings.patch_embedding"},
  };
  const std::string tower = vision ? "vision_model" : "text_model";
  table.push_back({"positional_embedding", tower + ".embeddings.position_embedding.weight"});
  return table;
}

std::string renamed(std::string name) {
  const bool vision = name.starts_with("visual.");
  if (vision) name = name.substr(7);
  for (const auto& [from, to] : replacements(vision)) {
    if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  }
  return name;
}

void load_open_clip(nn::Module& model, Backend& device, const GoldenCase& source) {
  model.materialize(device, source.dtype);
  for (const CaseParameter& parameter : source.parameters()) {
    const std::size_t count = parameter.values.size();
    const auto load = [&](const std::string& name, std::size_t first, std::size_t n,
                          bool transposed = false) {
      model.load(name, DType::f32, parameter.values.data() + first, n, transposed);
    };
    if (parameter.name == "logit_scale") continue;
    if (parameter.name == "visual.proj") {
      load("visual_projection.weight", 0, count, true);
    } else if (parameter.name == "text_projection") {
      load("text_projection.weight", 0, count, true);
    } else if (const auto at = parameter.name.find("attn.in_proj_"); at != std::string::npos) {
      const std::string block = renamed(parameter.name.substr(0, at)), kind = parameter.name.substr(at + 13);
      const char* const names[] = {"q_proj.", "k_proj.", "v_proj."};
      for (std::size_t i = 0; i < 3; ++i)
        load(block + "self_attn." + names[i] + kind, i * count / 3, count / 3);
    } else {
      load(renamed(parameter.name), 0, count);
    }
  }
  CHECK_EQ(model.missing().size(), std::size_t{0});
}

std::unique_ptr<models::ClipModel> open_clip_model(const Value& config) {
  const Value json = config["model_cfg"], vision = json["vision_cfg"], text = json["text_cfg"];
  models::ClipTextConfig t;
  t.hidden_size = text.integer("width");
  t.intermediate_size = 4 * t.hidden_size;
  t.num_hidden_layers = text.integer("layers");
  t.num_attention_heads = text.integer("heads");
  t.max_position_embeddings = text.integer("context_length");
  t.vocab_size = text.integer("vocab_size");
  models::ClipVisionConfig v;
  v.hidden_size = vision.integer("width");
  v.intermediate_size = 4 * v.hidden_size;
  v.num_hidden_layers = vision.integer("layers");
  v.num_attention_heads = v.hidden_size / vision.integer("head_width");
  v.image_size = vision.integer("image_size");
  v.patch_size = vision.integer("patch_size");
  t.hidden_act = v.hidden_act = UnaryOp::gelu_erf;
  t.projection_dim = v.projection_dim = json.integer("embed_dim");
  return std::make_unique<models::ClipModel>(t, v);
}

Tensor pictures_input(Backend& device, const Value& run, const char* name) {
  const Tensor picture = input_tensor(device, run, name);
  return ops::reshape(picture, {1, 3, picture.dim(1), picture.dim(2)});
}

}  // namespace

// ---- T5
// ----------------------------------------------------------------------------------------------------

TEST("t5: hidden states as transformers") {
  for_each_run({"t5", "t5-bf16"}, [](const GoldenCase& source, Backend& device) {
    models::T5Encoder model(t5_config(source.config()));
    load_case(model, device, source);
    for (const Value& run : source.runs()) {
      const auto ids = input_ids(run, "input_ids");
      const Tensor hidden = model.forward(token_ids(ids, input_shape(run, "input_ids")));
      check_golden("t5 " + run["name"].text() + " on " + device.name(), hidden,
                   source.golden(run, "last_hidden_state"));
    }
  });
}

TEST("t5: an empty text and ids outside the vocabulary are refused") {
  const auto device = cpu_device(1);
  models::T5Encoder model(
      {.vocab_size = 4, .d_model = 4, .d_kv = 2, .d_ff = 4, .num_layers = 1, .num_heads = 2});
  model.materialize(*device, DType::f32);
  const std::vector<std::int32_t> ids{1, 4};
  CHECK_THROWS("ERR_SHAPE", model.forward({ids, 1, 0}));
  CHECK_THROWS("ERR_SHAPE", model.forward({ids, 1, 3}));
  CHECK_THROWS("ERR_SHAPE", model.forward({ids, 1, 2}));
  CHECK_THROWS("ERR_SHAPE", model.forward({std::span(ids).first(0), 1, 0}));
}

TEST("t5: buckets of every distance to 600") {
  const GoldenCase source = read_case("t5-buckets");
  const Value run = source.runs()[0];
  const auto& wanted = source.golden(run, "bucket").values;
  const auto relative = input_ids(run, "relative_position");
  for (std::size_t i = 0; i < relative.size(); ++i)
    CHECK_EQ(models::t5_bucket(relative[i], 32, 128), wanted[i]);
}

// ---- CLIP
// --------------------------------------------------------------------------------------------------

TEST("clip text: hidden and pooled states as transformers") {
  for_each_run({"clip-text-legacy", "clip-text-modern", "clip-text-bf16"},
               [](const GoldenCase& source, Backend& device) {
                 models::ClipText model(text_config(source.config(), 0));
                 load_case(model, device, source);
                 for (const Value& run : source.runs()) {
                   const auto ids = input_ids(run, "input_ids");
                   const auto out = model.forward(token_ids(ids, input_shape(run, "input_ids")));
                   const std::string what = source.json()["case"].text() + " " + run["name"].text();
                   check_golden(what + " hidden", out.hidden, source.golden(run, "last_hidden_state"));
                   check_golden(what + " pooled", out.pooled, source.golden(run, "pooled"));
                   CHECK(!out.projected);
                 }
               });
}

TEST("clip: features and cosines as transformers") {
  for_each_run({"clip-gelu", "clip-quick-gelu"}, [](const GoldenCase& source, Backend& device) {
    const Value config = source.config();
    const int shared = config.integer("projection_dim");
    models::ClipModel model(text_config(config["text_config"], shared),
                            vision_config(config["vision_config"], shared));
    model.materialize(device, source.dtype);
    for (const CaseParameter& parameter : source.parameters()) {
      if (parameter.name == "logit_scale") continue;
      model.load(parameter.name, DType::f32, parameter.values.data(), parameter.values.size());
    }
    CHECK_EQ(model.missing().size(), std::size_t{0});
    for (const Value& run : source.runs()) {
      const auto ids = input_ids(run, "input_ids");
      const auto text = model.text.forward(token_ids(ids, input_shape(run, "input_ids")));
      const auto vision = model.vision.forward(input_tensor(device, run, "pixel_values"));
      check_golden("image features", vision.projected, source.golden(run, "image_features"));
      check_golden("text features", text.projected, source.golden(run, "text_features"));
      check_golden("cosine", cosines(vision.projected, text.projected), source.golden(run, "cosine"));
    }
  });
}

TEST("clip: the open_clip layout, pictures prepared as HPSv2 does") {
  for_each_run({"open-clip", "open-clip-wide", "open-clip-f16"}, [](const GoldenCase& source,
                                                                    Backend& device) {
    const auto model = open_clip_model(source.config());
    load_open_clip(*model, device, source);
    for (const Value& run : source.runs()) {
      const auto ids = input_ids(run, "text");
      const std::string what = source.json()["case"].text() + " " + run["name"].text();
      Tensor pixels;
      if (run["name"].text() == "pictures") {
        std::vector<Tensor> prepared;
        for (const char* name : {"square", "wide"}) {
          const Tensor fitted = models::resize_max_size_pad(pictures_input(device, run, name), 28);
          prepared.push_back(models::normalise(fitted, models::kClipStatistics));
        }
        pixels = ops::concat(prepared, 0);
        check_golden(what + " pixels", pixels, source.golden(run, "pixel_values"));
      } else {
        pixels = input_tensor(device, run, "pixel_values");
      }
      const auto text = model->text.forward(token_ids(ids, input_shape(run, "text")));
      const auto vision = model->vision.forward(pixels);
      check_golden(what + " image", vision.projected, source.golden(run, "image_features"));
      check_golden(what + " text", text.projected, source.golden(run, "text_features"));
      check_golden(what + " cosine", cosines(vision.projected, text.projected), source.golden(run, "cosine"));
    }
  });
}

TEST("clip: inputs that disagree with the config are refused") {
  const auto device = cpu_device(1);
  models::ClipTextConfig t;
  t.hidden_size = 8, t.intermediate_size = 8, t.num_hidden_layers = 1, t.num_attention_heads = 2;
  t.vocab_size = 10, t.max_position_embeddings = 4;
  models::ClipText text(t);
  text.materialize(*device, DType::f32);
  const std::vector<std::int32_t> ids{1, 2, 3, 4, 9, 10};
  CHECK_THROWS("ERR_SHAPE", text.forward({ids, 1, 6}));                     // more tokens than positions
  CHECK_THROWS("ERR_SHAPE", text.forward({ids, 2, 2}));                     // 6 ids are not 2 x 2
  CHECK_THROWS("ERR_SHAPE", text.forward({std::span(ids).last(2), 1, 2}));  // 10 is no word
  t.num_attention_heads = 3;
  CHECK_THROWS("ERR_SHAPE", models::ClipText(t));
  models::ClipVisionConfig v;
  v.hidden_size = 8, v.intermediate_size = 8, v.num_hidden_layers = 1, v.num_attention_heads = 2;
  v.image_size = 8, v.patch_size = 4;
  models::ClipVision vision(v);
  vision.materialize(*device, DType::f32);
  CHECK_THROWS("ERR_SHAPE", vision.forward(device->empty({1, 3, 8, 12})));
}

// ---- the autoencoder
// ---------------------------------------------------------------------------------------

TEST("autoencoder: pictures and moments as diffusers") {
  for_each_run({"autoencoder", "autoencoder-two-layers", "autoencoder-four-levels", "autoencoder-quant",
                "autoencoder-bf16"},
               [](const GoldenCase& source, Backend& device) {
                 models::AutoencoderKL model(autoencoder_config(source.config()));
                 load_case(model, device, source);
                 for (const Value& run : source.runs()) {
                   const bool decoder = run["part"].text() == "decoder";
                   const Tensor x = input_tensor(device, run, decoder ? "latents" : "image");
                   const Tensor y = decoder ? model.decode(x) : model.encode(x);
                   check_golden(
                       source.json()["case"].text() + " " + run["name"].text() + " on " + device.name(), y,
                       source.golden(run, decoder ? "image" : "moments"));
                 }
               });
}

TEST("autoencoder: halves, and inputs that are refused") {
  const auto device = cpu_device(1);
  models::AutoencoderConfig config;
  config.block_out_channels = {4, 8};
  config.norm_num_groups = 2;
  config.with_encoder = false;
  models::AutoencoderKL decoder(config);
  decoder.materialize(*device, DType::f32);
  for (const auto& named : decoder.named_parameters()) CHECK(named.name.starts_with("decoder."));
  CHECK_THROWS("ERR_SHAPE", decoder.encode(device->empty({1, 3, 8, 8})));
  CHECK_THROWS("ERR_SHAPE", decoder.decode(device->empty({1, 4, 8, 8})));
  config.with_encoder = true;
  models::AutoencoderKL both(config);
  both.materialize(*device, DType::f32);
  CHECK_THROWS("ERR_SHAPE", both.encode(device->empty({1, 3, 8, 1})));
  CHECK_THROWS("ERR_SHAPE", both.encode(device->empty({1, 4, 8, 8})));
  config.norm_num_groups = 3;
  CHECK_THROWS("ERR_SHAPE", models::AutoencoderKL(config));
}

// ---- pictures
// ----------------------------------------------------------------------------------------------

TEST("pictures: resize, pad, crop and normalise as torchvision") {
  for_each_run({"resize-float"}, [](const GoldenCase& source, Backend& device) {
    for (const Value& run : source.runs()) {
      if (run.has("sampled")) continue;
      const Tensor picture = pictures_input(device, run, "picture");
      const std::int64_t size = run.integer("size");
      const auto compare = [&](const char* name, const Tensor& got) {
        const Golden& wanted = source.golden(run, name);
        const Tensor one = ops::reshape(got, {3, got.dim(2), got.dim(3)});
        check_golden(run["name"].text() + " " + name + " on " + device.name(), one, wanted);
      };
      compare("shortest_side", models::resize_short_center_crop(picture, size));
      // HPSv2 forgets to pad a picture whose longest side fits already; its model would then refuse it.
      if (std::max(picture.dim(2), picture.dim(3)) == size) continue;
      const Tensor padded = models::resize_max_size_pad(picture, size);
      compare("longest_side", padded);
      compare("hps_pixels", models::normalise(padded, models::kClipStatistics));
    }
  });
}

// ---- gradients
// -------------------------------------------------------------------------------------------------
namespace {

/// d/dt of sum(f(parameters + t direction) * seed), by the tape and by central differences in doubles.
void check_directional(nn::Module& model, Backend& device, const std::function<Tensor()>& forward) {
  model.set_trainable([](const std::string&) { return true; });
  std::vector<Tensor> directions;
  const auto all = model.named_parameters();
  for (const auto& named : all) {
    directions.push_back(
        ops::from_host(device, named.shape, formula("direction." + named.name, named.shape.numel(), 0, 1)));
  }
  Tensor seed;
  double by_tape = 0;
  {
    Tape tape;
    model.watch(tape);
    const Tensor y = forward();
    seed = ops::from_host(device, y.shape(), formula("seed", y.numel(), 0, 1));
    tape.backward(y, seed);
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto product =
        ops::to_host(ops::sum(ops::reshape(ops::mul(all[i].gradient(), directions[i]), {-1}), {0}));
    by_tape += product[0];
  }
  const float step = 1e-4f;
  const auto shifted = [&](float by) {
    for (std::size_t i = 0; i < all.size(); ++i) ops::add_(all[i].value(), directions[i], by);
    return forward();
  };
  const Tensor above = shifted(step), below = shifted(-2 * step);
  const auto slope = ops::to_host(ops::sum(ops::reshape(ops::mul(ops::sub(above, below), seed), {-1}), {0}));
  CHECK_NEAR(slope[0] / (2 * step), by_tape, 2e-4 * std::abs(by_tape));
}

}  // namespace

TEST("models: gradients of encoders and autoencoder by finite differences") {
  const auto device = std::make_shared<ReferenceBackend>();  // doubles
  const GoldenCase t5 = read_case("t5"), clip = read_case("clip-quick-gelu"),
                   vae = read_case("autoencoder-quant");
  models::T5Encoder encoder(t5_config(t5.config()));
  load_case(encoder, *device, t5);
  const auto ids = input_ids(t5.runs()[0], "input_ids");
  check_directional(encoder, *device,
                    [&] { return encoder.forward(token_ids(ids, input_shape(t5.runs()[0], "input_ids"))); });

  models::AutoencoderKL autoencoder(autoencoder_config(vae.config()));
  load_case(autoencoder, *device, vae);
  const Tensor image = input_tensor(*device, vae.runs()[1], "image");
  check_directional(autoencoder, *device,
                    [&] { return autoencoder.decode(ops::narrow(autoencoder.encode(image), 1, 0, 3)); });

  const Value config = clip.config();
  models::ClipModel towers(text_config(config["text_config"], 20),
                           vision_config(config["vision_config"], 20));
  towers.materialize(*device, DType::f32);
  for (const CaseParameter& parameter : clip.parameters()) {
    if (parameter.name == "logit_scale") continue;
    towers.load(parameter.name, DType::f32, parameter.values.data(), parameter.values.size());
  }
  const auto words = input_ids(clip.runs()[0], "input_ids");
  const Tensor pixels = input_tensor(*device, clip.runs()[0], "pixel_values");
  check_directional(towers, *device, [&] {
    const auto text = towers.text.forward(token_ids(words, input_shape(clip.runs()[0], "input_ids")));
    return cosines(towers.vision.forward(pixels).projected, text.projected);
  });
}

}  // namespace danceflux::test
