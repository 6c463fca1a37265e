// Text encoders and CLIP: ids and pictures to features.
#include <optional>

#include "addon/model_wrap.h"
#include "addon/models.h"
#include "models/clip.h"
#include "models/image_math.h"
#include "models/scorer.h"
#include "models/t5.h"

namespace danceflux::addon {
namespace {

/// Token ids as they come from JavaScript: Int32Array [batch, length].
struct Ids {
  std::vector<std::int32_t> values;
  std::int64_t batch = 1;
  nn::TokenIds view() const {
    return {values, batch, static_cast<std::int64_t>(values.size()) / std::max<std::int64_t>(batch, 1)};
  }
};

Ids to_ids(const Napi::CallbackInfo& info) {
  require(info[0].IsTypedArray() && info[0].As<Napi::TypedArray>().TypedArrayType() == napi_int32_array,
          "ERR_ARGUMENT", "ids: expected an Int32Array");
  const auto array = info[0].As<Napi::Int32Array>();
  Ids ids{{array.Data(), array.Data() + array.ElementLength()}, to_integer(info[1], "batch")};
  require(ids.batch > 0 && static_cast<std::int64_t>(ids.values.size()) % ids.batch == 0, "ERR_ARGUMENT",
          "ids: expected a multiple of ", ids.batch, " ids, got ", ids.values.size());
  return ids;
}

struct Encoded {
  Tensor hidden, pooled, projected;
};

template <class Handle>
auto encoded_to_js(Handle handle) {
  return [handle](Napi::Env env, const Encoded& encoded) {
    Napi::Object result = Napi::Object::New(env);
    result.Set("hidden", handle(env, encoded.hidden));
    if (encoded.pooled) result.Set("pooled", handle(env, encoded.pooled));
    if (encoded.projected) result.Set("projected", handle(env, encoded.projected));
    return result;
  };
}

Encoded encode(const models::T5Encoder& model, const nn::TokenIds& ids) {
  return {model.forward(ids), {}, {}};
}
Encoded encode(const models::ClipText& model, const nn::TokenIds& ids) {
  const auto output = model.forward(ids);
  return {output.hidden, output.pooled, output.projected};
}
Encoded encode(const models::ClipModel& model, const nn::TokenIds& ids) { return encode(model.text, ids); }

template <class Derived, class Model>
class EncoderWrap : public ModelWrap<Derived, Model> {
 public:
  using ModelWrap<Derived, Model>::ModelWrap;
  using Base = EncoderWrap;
  static Napi::ClassPropertyDescriptor<Derived> encode_method() {
    Napi::Value (Derived::*const method)(const Napi::CallbackInfo&) = &EncoderWrap::encode_ids;
    return Derived::InstanceMethod("encode", method);
  }
  Napi::Value encode_ids(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      auto ids = to_ids(info);
      return this->run(
          info.Env(), [ids = std::move(ids)](Model& model) { return encode(model, ids.view()); },
          encoded_to_js(this->as_handle()));
    });
  }
};

class T5Wrap : public EncoderWrap<T5Wrap, models::T5Encoder> {
 public:
  using Base::Base;
  static std::vector<Napi::ClassPropertyDescriptor<T5Wrap>> own_methods() { return {encode_method()}; }
};

class ClipTextWrap : public EncoderWrap<ClipTextWrap, models::ClipText> {
 public:
  using Base::Base;
  static std::vector<Napi::ClassPropertyDescriptor<ClipTextWrap>> own_methods() { return {encode_method()}; }
};

std::array<float, 3> three_numbers(const Napi::Object& object, const char* name) {
  const std::vector<float> values = to_floats(field(object, name), name);
  require(values.size() == 3, "ERR_ARGUMENT", name, ": expected 3 numbers, got ", values.size());
  return {values[0], values[1], values[2]};
}

// Nothing: the pictures are pixel values already.
std::optional<models::ScorerPreprocess> to_preprocess(const Napi::Value& value) {
  if (value.IsString()) {
    require(to_string(value, "preprocess") == "pixelValues", "ERR_ARGUMENT",
            "preprocess: expected pixelValues or an object");
    return std::nullopt;
  }
  const Napi::Object object = to_object(value, "preprocess");
  const std::string mode = to_string(field(object, "mode"), "mode");
  require(mode == "max-pad" || mode == "short-crop", "ERR_ARGUMENT",
          "mode: expected max-pad or short-crop, got ", mode);
  models::ScorerPreprocess preprocess;
  preprocess.size = to_integer(field(object, "size"), "size");
  preprocess.fit = mode == "max-pad" ? models::ScorerPreprocess::Fit::longest_side_padded
                                     : models::ScorerPreprocess::Fit::shortest_side_cropped;
  preprocess.quantize = to_bool(field(object, "quantize"), "quantize");
  preprocess.statistics = {three_numbers(object, "mean"), three_numbers(object, "std")};
  return preprocess;
}

class ClipWrap : public EncoderWrap<ClipWrap, models::ClipModel> {
 public:
  using Base::Base;
  static std::vector<Napi::ClassPropertyDescriptor<ClipWrap>> own_methods() {
    return {encode_method(), InstanceMethod<&ClipWrap::encode_images>("encodeImages"),
            InstanceMethod<&ClipWrap::cosine>("cosine")};
  }

 private:
  Napi::Value encode_images(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Tensor images = TensorWrap::unwrap(info[0], "images");
      const auto preprocess = to_preprocess(info[1]);
      return run(
          info.Env(),
          [images, preprocess](models::ClipModel& model) {
            return model.vision.forward(preprocess ? models::prepare(images, *preprocess) : images).projected;
          },
          as_handle());
    });
  }

  Napi::Value cosine(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const Tensor images = TensorWrap::unwrap(info[0], "images"), text = TensorWrap::unwrap(info[1], "text");
      std::vector<std::int64_t> rows;
      const Napi::Array list = to_array(info[2], "rows");
      for (std::uint32_t i = 0; i < list.Length(); ++i) rows.push_back(to_integer(list.Get(i), "rows"));
      return run(
          info.Env(),
          [images, text, rows](models::ClipModel&) { return models::cosine_scores(images, text, rows); },
          from_floats);
    });
  }
};

UnaryOp to_activation(const Napi::Object& config) {
  const std::string name = to_string(field(config, "hidden_act"), "hidden_act");
  if (name == "quick_gelu") return UnaryOp::quick_gelu;
  if (name == "gelu") return UnaryOp::gelu_erf;
  require(name == "gelu_new" || name == "gelu_pytorch_tanh", "ERR_ARGUMENT",
          "hidden_act: expected quick_gelu, gelu, gelu_new or gelu_pytorch_tanh, got ", name);
  return UnaryOp::gelu_tanh;
}

void read_blocks(models::ClipBlockConfig& config, const Napi::Object& object) {
  config.hidden_size = int_field(object, "hidden_size");
  config.intermediate_size = int_field(object, "intermediate_size");
  config.num_hidden_layers = int_field(object, "num_hidden_layers");
  config.num_attention_heads = int_field(object, "num_attention_heads");
  config.layer_norm_eps = static_cast<float>(number_field(object, "layer_norm_eps"));
  config.hidden_act = to_activation(object);
}

models::ClipTextConfig to_text_config(const Napi::Object& object) {
  models::ClipTextConfig config;
  read_blocks(config, object);
  config.vocab_size = int_field(object, "vocab_size");
  config.max_position_embeddings = int_field(object, "max_position_embeddings");
  config.eos_token_id = int_field(object, "eos_token_id");
  return config;
}

models::ClipVisionConfig to_vision_config(const Napi::Object& object) {
  models::ClipVisionConfig config;
  read_blocks(config, object);
  config.image_size = int_field(object, "image_size");
  config.patch_size = int_field(object, "patch_size");
  config.num_channels = int_field(object, "num_channels");
  return config;
}

models::T5Config to_t5_config(const Napi::Object& object) {
  models::T5Config config;
  config.vocab_size = int_field(object, "vocab_size");
  config.d_model = int_field(object, "d_model");
  config.d_kv = int_field(object, "d_kv");
  config.d_ff = int_field(object, "d_ff");
  config.num_layers = int_field(object, "num_layers");
  config.num_heads = int_field(object, "num_heads");
  config.relative_attention_num_buckets = int_field(object, "relative_attention_num_buckets");
  config.relative_attention_max_distance = int_field(object, "relative_attention_max_distance");
  config.layer_norm_epsilon = static_cast<float>(number_field(object, "layer_norm_epsilon"));
  return config;
}

/// Both towers, in the form that make_handle wants: one config, one constructor argument.
struct BothTowers : models::ClipModel {
  struct Config {
    models::ClipTextConfig text;
    models::ClipVisionConfig vision;
  };
  explicit BothTowers(const Config& config) : ClipModel(config.text, config.vision) {}
};

}  // namespace

void define_encoders(Napi::Env env) {
  T5Wrap::define(env, "T5");
  ClipTextWrap::define(env, "ClipText");
  ClipWrap::define(env, "Clip");
}

Napi::Value make_t5(const Napi::CallbackInfo& info, const DevicePointer& device) {
  return T5Wrap::make(
      info.Env(), "T5",
      make_handle<models::T5Encoder>(info, device, "t5", to_t5_config(to_object(info[0], "config"))));
}

Napi::Value make_clip_text(const Napi::CallbackInfo& info, const DevicePointer& device) {
  return ClipTextWrap::make(
      info.Env(), "ClipText",
      make_handle<models::ClipText>(info, device, "clip-text", to_text_config(to_object(info[0], "config"))));
}

Napi::Value make_clip(const Napi::CallbackInfo& info, const DevicePointer& device) {
  const Napi::Object object = to_object(info[0], "config");
  BothTowers::Config config{to_text_config(to_object(field(object, "text"), "text")),
                            to_vision_config(to_object(field(object, "vision"), "vision"))};
  config.text.projection_dim = config.vision.projection_dim = int_field(object, "projectionDim");
  return ClipWrap::make(info.Env(), "Clip", make_handle<BothTowers>(info, device, "clip", config));
}

}  // namespace danceflux::addon
