/**
 * The FLUX transformer: its configuration and its weights, in the diffusers layout or as a BFL single file.
 *
 * Names of the BFL files and how they are cut: facts read from diffusers' conversion script and checked by round trips in the tests.
 */
import { dirname, join } from "node:path";
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import type { NativeFlux } from "../native.js";
import { Fields, MOST_LAYERS } from "./fields.js";
import type { FluxConfig, WeightDType } from "./types.js";
import {
  loadWeights,
  placesIn,
  type Source,
  type SourceOf,
  type TensorPlaces,
  weightFiles,
} from "./weights.js";

/** FLUX.1-dev as published; a BFL file without a config.json beside it is taken for this. */
export const FLUX_DEV: FluxConfig = {
  inChannels: 64,
  outChannels: 64,
  numLayers: 19,
  numSingleLayers: 38,
  attentionHeadDim: 128,
  numAttentionHeads: 24,
  jointAttentionDim: 4096,
  pooledProjectionDim: 768,
  guidanceEmbeds: true,
  axesDimsRope: [16, 56, 56],
};

/** `transformer/config.json`. @throws {DanceError} `ERR_CONFIG` naming the field. */
export async function readFluxConfig(path: string): Promise<FluxConfig> {
  const fields = await Fields.read(path);
  if (fields.count("patch_size", 1) !== 1) {
    throw new DanceError("ERR_CONFIG", `${path}: patch_size: expected 1, got ${fields.raw("patch_size")}`);
  }
  const inChannels = fields.count("in_channels", FLUX_DEV.inChannels);
  const axes = fields.counts("axes_dims_rope", FLUX_DEV.axesDimsRope);
  if (axes.length !== 3)
    throw new DanceError("ERR_CONFIG", `${path}: axes_dims_rope: expected 3 numbers, got ${axes.length}`);
  return {
    inChannels,
    outChannels: fields.count("out_channels", inChannels),
    numLayers: fields.countOrZero("num_layers", undefined, MOST_LAYERS),
    numSingleLayers: fields.countOrZero("num_single_layers", undefined, MOST_LAYERS),
    attentionHeadDim: fields.count("attention_head_dim", 128, 4096),
    numAttentionHeads: fields.count("num_attention_heads", 24, MOST_LAYERS),
    jointAttentionDim: fields.count("joint_attention_dim", 4096),
    pooledProjectionDim: fields.count("pooled_projection_dim", 768),
    guidanceEmbeds: fields.flag("guidance_embeds", false),
    axesDimsRope: axes as [number, number, number],
  };
}

/** The same in the spelling of `config.json`. */
export function fluxConfigJson(config: FluxConfig): Record<string, unknown> {
  return {
    _class_name: "FluxTransformer2DModel",
    patch_size: 1,
    in_channels: config.inChannels,
    out_channels: config.outChannels === config.inChannels ? null : config.outChannels,
    num_layers: config.numLayers,
    num_single_layers: config.numSingleLayers,
    attention_head_dim: config.attentionHeadDim,
    num_attention_heads: config.numAttentionHeads,
    joint_attention_dim: config.jointAttentionDim,
    pooled_projection_dim: config.pooledProjectionDim,
    guidance_embeds: config.guidanceEmbeds,
    axes_dims_rope: config.axesDimsRope,
  };
}

/** A BFL module and which of its rows, counted in widths of the model, are the diffusers module. */
interface BflRows {
  module: string;
  first?: number;
  widths?: number;
  swapHalves?: boolean;
}

const part = (module: string, first: number, widths: number): BflRows => ({ module, first, widths });

const TOP: Readonly<Record<string, BflRows>> = {
  x_embedder: { module: "img_in" },
  context_embedder: { module: "txt_in" },
  "time_text_embed.timestep_embedder.linear_1": { module: "time_in.in_layer" },
  "time_text_embed.timestep_embedder.linear_2": { module: "time_in.out_layer" },
  "time_text_embed.guidance_embedder.linear_1": { module: "guidance_in.in_layer" },
  "time_text_embed.guidance_embedder.linear_2": { module: "guidance_in.out_layer" },
  "time_text_embed.text_embedder.linear_1": { module: "vector_in.in_layer" },
  "time_text_embed.text_embedder.linear_2": { module: "vector_in.out_layer" },
  // BFL keeps shift before scale here, diffusers scale before shift.
  "norm_out.linear": { module: "final_layer.adaLN_modulation.1", swapHalves: true },
  proj_out: { module: "final_layer.linear" },
};

const DOUBLE: Readonly<Record<string, BflRows>> = {
  "norm1.linear": { module: "img_mod.lin" },
  "norm1_context.linear": { module: "txt_mod.lin" },
  "attn.to_q": part("img_attn.qkv", 0, 1),
  "attn.to_k": part("img_attn.qkv", 1, 1),
  "attn.to_v": part("img_attn.qkv", 2, 1),
  "attn.add_q_proj": part("txt_attn.qkv", 0, 1),
  "attn.add_k_proj": part("txt_attn.qkv", 1, 1),
  "attn.add_v_proj": part("txt_attn.qkv", 2, 1),
  "attn.norm_q": { module: "img_attn.norm.query_norm" },
  "attn.norm_k": { module: "img_attn.norm.key_norm" },
  "attn.norm_added_q": { module: "txt_attn.norm.query_norm" },
  "attn.norm_added_k": { module: "txt_attn.norm.key_norm" },
  "attn.to_out.0": { module: "img_attn.proj" },
  "attn.to_add_out": { module: "txt_attn.proj" },
  "ff.net.0.proj": { module: "img_mlp.0" },
  "ff.net.2": { module: "img_mlp.2" },
  "ff_context.net.0.proj": { module: "txt_mlp.0" },
  "ff_context.net.2": { module: "txt_mlp.2" },
};

const SINGLE: Readonly<Record<string, BflRows>> = {
  "norm.linear": { module: "modulation.lin" },
  "attn.to_q": part("linear1", 0, 1),
  "attn.to_k": part("linear1", 1, 1),
  "attn.to_v": part("linear1", 2, 1),
  proj_mlp: part("linear1", 3, 4),
  "attn.norm_q": { module: "norm.query_norm" },
  "attn.norm_k": { module: "norm.key_norm" },
  proj_out: { module: "linear2" },
};

/** The BFL module that holds a diffusers module, and which rows of it. Undefined for a name that FLUX does not have. */
export function bflModule(module: string): BflRows | undefined {
  const block = /^(single_)?transformer_blocks\.(\d+)\.(.+)$/.exec(module);
  if (!block) return TOP[module];
  const inside = (block[1] ? SINGLE : DOUBLE)[block[3]!];
  return (
    inside && { ...inside, module: `${block[1] ? "single" : "double"}_blocks.${block[2]}.${inside.module}` }
  );
}

/** Every diffusers module that is kept in the BFL module `name`, in the order of its rows. For adapters made for BFL names. */
export function modulesInBfl(name: string): { module: string; rows: BflRows }[] {
  const block = /^(single|double)_blocks\.(\d+)\.(.+)$/.exec(name);
  const table = block ? (block[1] === "single" ? SINGLE : DOUBLE) : TOP;
  const prefix = block ? `${block[1] === "single" ? "single_" : ""}transformer_blocks.${block[2]}.` : "";
  return Object.entries(table)
    .filter(([, rows]) => rows.module === (block ? block[3] : name))
    .map(([module, rows]) => ({ module: prefix + module, rows }));
}

function bflSource(config: FluxConfig): SourceOf {
  const width = config.attentionHeadDim * config.numAttentionHeads;
  return (parameter): Source | undefined => {
    const dot = parameter.lastIndexOf(".");
    const place = bflModule(parameter.slice(0, dot));
    if (!place) return undefined;
    const isNorm = /norm_(added_)?[qk]$/.test(parameter.slice(0, dot));
    const source: Source = { tensor: `${place.module}.${isNorm ? "scale" : parameter.slice(dot + 1)}` };
    if (place.widths !== undefined) {
      source.row = place.first! * width;
      source.rows = place.widths * width;
    }
    if (place.swapHalves) source.swapHalves = true;
    return source;
  };
}

// ComfyUI puts this before every name of its checkpoints.
const COMFY_PREFIX = "model.diffusion_model.";

/** Counts that a BFL file tells by itself: blocks and the guidance embedder. */
function configOfBflFile(places: TensorPlaces): FluxConfig {
  const blocks = (kind: string) =>
    1 +
    Math.max(
      -1,
      ...[...places.keys()].map((name) =>
        Number(new RegExp(`^${kind}_blocks\\.(\\d+)\\.`).exec(name)?.[1] ?? -1),
      ),
    );
  const inChannels = places.get("img_in.weight")?.shape[1] ?? FLUX_DEV.inChannels;
  return {
    ...FLUX_DEV,
    inChannels,
    outChannels: places.get("final_layer.linear.weight")?.shape[0] ?? inChannels,
    numLayers: blocks("double"),
    numSingleLayers: blocks("single"),
    guidanceEmbeds: places.has("guidance_in.in_layer.weight"),
  };
}

export interface LoadedFlux {
  config: FluxConfig;
  model: NativeFlux;
}

async function create(
  device: Device,
  config: FluxConfig,
  weights: WeightDType,
  places: TensorPlaces,
  sourceOf?: SourceOf,
  signal?: AbortSignal,
): Promise<LoadedFlux> {
  let model: NativeFlux;
  try {
    model = device.handle.createFlux(config, weights);
  } catch (error) {
    throw DanceError.from(error);
  }
  try {
    await loadWeights(model, places, sourceOf, signal);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { config, model };
}

/** A `transformer/` folder of a diffusers pipeline. */
export async function loadFluxFolder(
  device: Device,
  folder: string,
  weights: WeightDType,
  signal?: AbortSignal,
): Promise<LoadedFlux> {
  const config = await readFluxConfig(join(folder, "config.json"));
  const places = placesIn(await weightFiles(folder, "diffusion_pytorch_model"));
  return create(device, config, weights, places, undefined, signal);
}

/** What {@link loadFluxFile} would load: the file's header is read, and `config.json` beside it. */
export async function inspectFluxFile(file: string): Promise<{ config: FluxConfig; places: TensorPlaces }> {
  const places = placesIn([file], (name) =>
    name.startsWith(COMFY_PREFIX) ? name.slice(COMFY_PREFIX.length) : name,
  );
  const config = await readFluxConfig(join(dirname(file), "config.json")).catch((error: DanceError) => {
    if (error.code === "ERR_FILE") return configOfBflFile(places);
    throw error;
  });
  return { config, places };
}

/** Names that a BFL single file goes by in a pipeline's folder. */
export const FLUX_FILES: string[] = [
  "flux1-dev.safetensors",
  "flux1-schnell.safetensors",
  "flux1.safetensors",
];

/**
 * A BFL single file (`flux1-dev.safetensors`) or a ComfyUI checkpoint of one. A `config.json` in the diffusers spelling beside it is
 * used when there is one; otherwise the file is taken for FLUX.1 with as many blocks as it has.
 */
export async function loadFluxFile(
  device: Device,
  file: string,
  weights: WeightDType,
  signal?: AbortSignal,
): Promise<LoadedFlux> {
  const { config, places } = await inspectFluxFile(file);
  return create(device, config, weights, places, bflSource(config), signal);
}
