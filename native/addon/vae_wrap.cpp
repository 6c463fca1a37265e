// The autoencoder's own methods: latents to pictures and back.
#include "addon/model_wrap.h"
#include "addon/models.h"
#include "models/autoencoder.h"
#include "models/latents.h"
#include "ops/ops.h"

namespace danceflux::addon {
namespace {

/// An autoencoder that knows how its latents are scaled.
struct ScaledAutoencoder : models::AutoencoderKL {
  struct Config : models::AutoencoderConfig {
    float scaling = 1, shift = 0;
  };
  explicit ScaledAutoencoder(const Config& config)
      : AutoencoderKL(config), scaling(config.scaling), shift(config.shift) {}

  Tensor decode_packed(const Tensor& latents, std::int64_t rows, std::int64_t columns) const {
    return decode(ops::affine(models::unpack_latents(latents, rows, columns), 1 / scaling, shift));
  }
  Tensor encode_packed(const Tensor& images) const {
    const Tensor mean = ops::narrow(encode(images), 1, 0, config().latent_channels);
    return models::pack_latents(ops::affine(mean, scaling, -shift * scaling));
  }

  const float scaling, shift;
};

class VaeWrap : public ModelWrap<VaeWrap, ScaledAutoencoder> {
 public:
  using Base::Base;
  static std::vector<Napi::ClassPropertyDescriptor<VaeWrap>> own_methods() {
    return {InstanceMethod<&VaeWrap::decode>("decode"), InstanceMethod<&VaeWrap::encode>("encode"),
            InstanceMethod<&VaeWrap::decode_raw>("decodeRaw"),
            InstanceMethod<&VaeWrap::encode_raw>("encodeRaw")};
  }

 private:
  template <class Work>
  Napi::Value map(const Napi::CallbackInfo& info, const char* name, Work work) {
    const Tensor input = TensorWrap::unwrap(info[0], name);
    return run(
        info.Env(), [input, work](ScaledAutoencoder& model) { return work(model, input); }, as_handle());
  }

  Napi::Value decode(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      const std::int64_t rows = to_integer(info[1], "gridRows"), columns = to_integer(info[2], "gridColumns");
      return map(info, "latents", [rows, columns](ScaledAutoencoder& model, const Tensor& latents) {
        return model.decode_packed(latents, rows, columns);
      });
    });
  }

  Napi::Value encode(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      return map(info, "images",
                 [](ScaledAutoencoder& model, const Tensor& images) { return model.encode_packed(images); });
    });
  }

  Napi::Value decode_raw(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      return map(info, "z", [](ScaledAutoencoder& model, const Tensor& z) { return model.decode(z); });
    });
  }

  Napi::Value encode_raw(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      return map(info, "images",
                 [](ScaledAutoencoder& model, const Tensor& images) { return model.encode(images); });
    });
  }
};

bool flag(const Napi::Object& object, const char* name, bool absent) {
  const Napi::Value value = object.Get(name);
  return value.IsUndefined() ? absent : to_bool(value, name);
}

ScaledAutoencoder::Config to_config(const Napi::Object& object) {
  ScaledAutoencoder::Config config;
  config.in_channels = int_field(object, "inChannels");
  config.out_channels = int_field(object, "outChannels");
  config.latent_channels = int_field(object, "latentChannels");
  config.block_out_channels.clear();
  for (std::int64_t channels : to_shape(field(object, "blockOutChannels"), "blockOutChannels")) {
    require(channels <= 1 << 20, "ERR_ARGUMENT", "blockOutChannels: expected at most 2^20, got ", channels);
    config.block_out_channels.push_back(static_cast<int>(channels));
  }
  config.layers_per_block = int_field(object, "layersPerBlock");
  config.norm_num_groups = int_field(object, "normNumGroups");
  config.mid_block_add_attention = flag(object, "midBlockAddAttention", true);
  config.use_quant_conv = flag(object, "useQuantConv", false);
  config.use_post_quant_conv = flag(object, "usePostQuantConv", false);
  config.scaling = static_cast<float>(number_field(object, "scalingFactor"));
  config.shift = static_cast<float>(number_field(object, "shiftFactor"));
  return config;
}

}  // namespace

void define_vae(Napi::Env env) { VaeWrap::define(env, "Vae"); }

Napi::Value make_vae(const Napi::CallbackInfo& info, const DevicePointer& device) {
  return VaeWrap::make(
      info.Env(), "Vae",
      make_handle<ScaledAutoencoder>(info, device, "vae", to_config(to_object(info[0], "config"))));
}

}  // namespace danceflux::addon
