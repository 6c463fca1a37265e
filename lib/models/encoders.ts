/** The text encoders of FLUX: CLIP-L's text tower and the encoder of T5 v1.1. */
import { join } from "node:path";
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import type { NativeTextEncoder } from "../native.js";
import { Fields, MOST_LAYERS } from "./fields.js";
import type { WeightDType } from "./types.js";
import { loadWeights, placesIn, weightFiles } from "./weights.js";

/** The numbers of a CLIP tower as config.json spells them; defaults are transformers'. */
export function readClipTextConfig(fields: Fields): Record<string, number | string> {
  return {
    vocab_size: fields.count("vocab_size", 49408),
    max_position_embeddings: fields.count("max_position_embeddings", 77),
    eos_token_id: fields.countOrZero("eos_token_id", 2),
    hidden_size: fields.count("hidden_size", 512),
    intermediate_size: fields.count("intermediate_size", 2048),
    num_hidden_layers: fields.count("num_hidden_layers", 12, MOST_LAYERS),
    num_attention_heads: fields.count("num_attention_heads", 8, MOST_LAYERS),
    layer_norm_eps: fields.number("layer_norm_eps", 1e-5),
    hidden_act: fields.text("hidden_act", "quick_gelu"),
  };
}

export function readClipVisionConfig(fields: Fields): Record<string, number | string> {
  return {
    image_size: fields.count("image_size", 224),
    patch_size: fields.count("patch_size", 32),
    num_channels: fields.count("num_channels", 3),
    hidden_size: fields.count("hidden_size", 768),
    intermediate_size: fields.count("intermediate_size", 3072),
    num_hidden_layers: fields.count("num_hidden_layers", 12, MOST_LAYERS),
    num_attention_heads: fields.count("num_attention_heads", 12, MOST_LAYERS),
    layer_norm_eps: fields.number("layer_norm_eps", 1e-5),
    hidden_act: fields.text("hidden_act", "quick_gelu"),
  };
}

function readT5Config(fields: Fields, where: string): Record<string, number> {
  const act = fields.text("feed_forward_proj", "relu");
  if (act !== "gated-gelu") {
    throw new DanceError(
      "ERR_CONFIG",
      `${where}: feed_forward_proj: expected "gated-gelu" (T5 v1.1), got "${act}"`,
    );
  }
  return {
    vocab_size: fields.count("vocab_size", 32128),
    d_model: fields.count("d_model", 512),
    d_kv: fields.count("d_kv", 64, 4096),
    d_ff: fields.count("d_ff", 2048),
    num_layers: fields.count("num_layers", 6, MOST_LAYERS),
    num_heads: fields.count("num_heads", 8, MOST_LAYERS),
    relative_attention_num_buckets: fields.count("relative_attention_num_buckets", 32),
    relative_attention_max_distance: fields.count("relative_attention_max_distance", 128),
    layer_norm_epsilon: fields.number("layer_norm_epsilon", 1e-6),
  };
}

/** Names of parameters that all CLIP files agree on: with the tower's prefix, which transformers 5 leaves out. */
export function withTowerPrefix(prefix: string): (name: string) => string | undefined {
  return (name) => {
    if (name.endsWith(".position_ids")) return undefined; // a buffer that old files hold
    const known = /^(text_model|vision_model|text_projection|visual_projection|logit_scale)\b/.test(name);
    return known ? name : prefix + name;
  };
}

async function filled(
  model: NativeTextEncoder,
  load: (model: NativeTextEncoder) => Promise<void>,
): Promise<NativeTextEncoder> {
  try {
    await load(model);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** A `text_encoder/` folder. */
export async function loadClipText(
  device: Device,
  folder: string,
  weights: WeightDType,
  signal?: AbortSignal,
): Promise<NativeTextEncoder> {
  const config = readClipTextConfig(await Fields.read(join(folder, "config.json")));
  const places = placesIn(await weightFiles(folder, "model"), withTowerPrefix("text_model."));
  return filled(device.handle.createClipText(config, weights), (model) =>
    loadWeights(model, places, undefined, signal),
  );
}

/** A `text_encoder_2/` folder. The embedding may be stored as `shared` or as `encoder.embed_tokens`. */
export async function loadT5(
  device: Device,
  folder: string,
  weights: WeightDType,
  signal?: AbortSignal,
): Promise<NativeTextEncoder> {
  const path = join(folder, "config.json");
  const config = readT5Config(await Fields.read(path), path);
  const places = placesIn(await weightFiles(folder, "model"));
  const source = (parameter: string) => {
    const tied = parameter === "shared.weight" && !places.has(parameter);
    return { tensor: tied ? "encoder.embed_tokens.weight" : parameter };
  };
  return filled(device.handle.createT5(config, weights), (model) =>
    loadWeights(model, places, source, signal),
  );
}
