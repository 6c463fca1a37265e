/** CLIP-family scorers: the CLIPModel layout of transformers and the open_clip layout of HPSv2. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import { type NativeClip, native } from "../native.js";
import { readClipTextConfig, readClipVisionConfig, withTowerPrefix } from "./encoders.js";
import { Fields, MOST_LAYERS } from "./fields.js";
import type { WeightDType } from "./types.js";
import {
  firstFile,
  loadWeights,
  placesIn,
  type Source,
  type SourceOf,
  type TensorPlaces,
  weightFiles,
} from "./weights.js";

type TowerConfig = Record<string, number | string>;

export interface ClipConfig {
  text: TowerConfig;
  vision: TowerConfig;
  projectionDim: number;
}

export interface LoadedClip {
  config: ClipConfig;
  model: NativeClip;
  /** exp of the learned logit scale; 1 when the file has none. */
  logitScale: number;
}

async function create(
  device: Device,
  config: ClipConfig,
  weights: WeightDType,
  places: TensorPlaces,
  sourceOf?: SourceOf,
  signal?: AbortSignal,
): Promise<NativeClip> {
  let model: NativeClip;
  try {
    model = device.handle.createClip(config, weights);
  } catch (error) {
    throw DanceError.from(error);
  }
  try {
    await loadWeights(model, places, sourceOf, signal);
    return model;
  } catch (error) {
    model.dispose();
    throw error;
  }
}

function logitScaleOf(places: TensorPlaces): number {
  const place = places.get("logit_scale");
  return place ? Math.exp(native().readTensor(place.file, place.tensor).values[0] ?? 0) : 1;
}

/** A folder with a CLIPModel: config.json and model.safetensors (PickScore, openai/clip-vit-large-patch14, ...). */
export async function loadClipFolder(
  device: Device,
  folder: string,
  weights: WeightDType,
  signal?: AbortSignal,
): Promise<LoadedClip> {
  const fields = await Fields.read(join(folder, "config.json"));
  const config: ClipConfig = {
    text: readClipTextConfig(fields.object("text_config")),
    vision: readClipVisionConfig(fields.object("vision_config")),
    projectionDim: fields.count("projection_dim", 512),
  };
  const places = placesIn(await weightFiles(folder, "model"), withTowerPrefix(""));
  const model = await create(device, config, weights, places, undefined, signal);
  return { config, model, logitScale: logitScaleOf(places) };
}

// open_clip's ViT-H-14, which HPSv2 fine-tuned.
const VIT_H_14: ClipConfig = {
  text: {
    vocab_size: 49408,
    max_position_embeddings: 77,
    eos_token_id: 2, // pooled where the id is largest
    hidden_size: 1024,
    intermediate_size: 4096,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    layer_norm_eps: 1e-5,
    hidden_act: "gelu",
  },
  vision: {
    image_size: 224,
    patch_size: 14,
    num_channels: 3,
    hidden_size: 1280,
    intermediate_size: 5120,
    num_hidden_layers: 32,
    num_attention_heads: 16,
    layer_norm_eps: 1e-5,
    hidden_act: "gelu",
  },
  projectionDim: 1024,
};

/** `open_clip_config.json`: model_cfg with vision_cfg and text_cfg. */
export async function readOpenClipConfig(path: string): Promise<ClipConfig> {
  const file = await Fields.read(path);
  const model = file.has("model_cfg") ? file.object("model_cfg") : file;
  const vision = model.object("vision_cfg");
  const text = model.object("text_cfg");
  const act = model.flag("quick_gelu", false) ? "quick_gelu" : "gelu";
  const visionWidth = vision.count("width", 768);
  const textWidth = text.count("width", 512);
  const mlp = (fields: Fields, width: number) => Math.trunc(width * fields.number("mlp_ratio", 4));
  return {
    projectionDim: model.count("embed_dim"),
    text: {
      vocab_size: text.count("vocab_size", 49408),
      max_position_embeddings: text.count("context_length", 77),
      eos_token_id: 2,
      hidden_size: textWidth,
      intermediate_size: mlp(text, textWidth),
      num_hidden_layers: text.count("layers", 12, MOST_LAYERS),
      num_attention_heads: text.count("heads", 8),
      layer_norm_eps: 1e-5,
      hidden_act: act,
    },
    vision: {
      image_size: vision.count("image_size", 224),
      patch_size: vision.count("patch_size", 16),
      num_channels: 3,
      hidden_size: visionWidth,
      intermediate_size: mlp(vision, visionWidth),
      num_hidden_layers: vision.count("layers", 12, MOST_LAYERS),
      num_attention_heads: Math.trunc(visionWidth / vision.count("head_width", 64)),
      layer_norm_eps: 1e-5,
      hidden_act: act,
    },
  };
}

// Modules of a block, transformers' to open_clip's. q, k and v are thirds of one matrix there.
const BLOCK: Readonly<Record<string, { module: string; third?: number }>> = {
  "self_attn.q_proj": { module: "attn.in_proj", third: 0 },
  "self_attn.k_proj": { module: "attn.in_proj", third: 1 },
  "self_attn.v_proj": { module: "attn.in_proj", third: 2 },
  "self_attn.out_proj": { module: "attn.out_proj" },
  layer_norm1: { module: "ln_1" },
  layer_norm2: { module: "ln_2" },
  "mlp.fc1": { module: "mlp.c_fc" },
  "mlp.fc2": { module: "mlp.c_proj" },
};

const WHOLE: Readonly<Record<string, Source>> = {
  "text_model.embeddings.token_embedding.weight": { tensor: "token_embedding.weight" },
  "text_model.embeddings.position_embedding.weight": { tensor: "positional_embedding" },
  "text_model.final_layer_norm.weight": { tensor: "ln_final.weight" },
  "text_model.final_layer_norm.bias": { tensor: "ln_final.bias" },
  // open_clip multiplies from the left, transformers' linear layers from the right.
  "text_projection.weight": { tensor: "text_projection", transposed: true },
  "visual_projection.weight": { tensor: "visual.proj", transposed: true },
  "vision_model.embeddings.class_embedding": { tensor: "visual.class_embedding" },
  "vision_model.embeddings.patch_embedding.weight": { tensor: "visual.conv1.weight" },
  "vision_model.embeddings.position_embedding.weight": { tensor: "visual.positional_embedding" },
  "vision_model.pre_layrnorm.weight": { tensor: "visual.ln_pre.weight" },
  "vision_model.pre_layrnorm.bias": { tensor: "visual.ln_pre.bias" },
  "vision_model.post_layernorm.weight": { tensor: "visual.ln_post.weight" },
  "vision_model.post_layernorm.bias": { tensor: "visual.ln_post.bias" },
};

function openClipSource(config: ClipConfig): SourceOf {
  return (parameter) => {
    const whole = WHOLE[parameter];
    if (whole) return whole;
    const match = /^(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$/.exec(parameter);
    const place = match && BLOCK[match[3]!];
    if (!match || !place) return undefined;
    const tower = match[1] === "text" ? config.text : config.vision;
    const prefix = `${match[1] === "text" ? "" : "visual."}transformer.resblocks.${match[2]}.${place.module}`;
    if (place.third === undefined) return { tensor: `${prefix}.${match[4]}` };
    const rows = Number(tower.hidden_size);
    return { tensor: `${prefix}_${match[4]}`, row: place.third * rows, rows };
  };
}

/**
 * A checkpoint in the open_clip layout: a `.pt` or `.safetensors` file, or a folder with one; `open_clip_config.json` beside it tells the
 * sizes, otherwise it is taken for ViT-H-14 (HPSv2.1). Names may lie below `state_dict.` and `module.`.
 */
export async function loadOpenClip(
  device: Device,
  file: string,
  configPath: string | undefined,
  weights: WeightDType,
  signal?: AbortSignal,
): Promise<LoadedClip> {
  const config = configPath ? await readOpenClipConfig(configPath) : VIT_H_14;
  const places = placesIn([file], (name) => name.replace(/^state_dict\./, "").replace(/^module\./, ""));
  const model = await create(device, config, weights, places, openClipSource(config), signal);
  return { config, model, logitScale: logitScaleOf(places) };
}

/** The checkpoint in a folder of HPSv2: the published file name first. */
export async function findOpenClipFile(folder: string): Promise<string> {
  const names = ["HPS_v2.1_compressed.pt", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"];
  const found = await firstFile(folder, names);
  if (!found && !(await stat(folder).catch(() => undefined)))
    throw new DanceError("ERR_FILE", `${folder}: expected a model's file or folder, found nothing`);
  if (!found) throw new DanceError("ERR_FILE", `${folder}: expected one of ${names.join(", ")}, found none`);
  return found;
}
