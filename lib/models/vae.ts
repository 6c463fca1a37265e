/** AutoencoderKL: configuration and weights, in the diffusers layout or as BFL's `ae.safetensors`. */
import { dirname, join } from "node:path";
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import type { NativeVae, VaeConfigNative } from "../native.js";
import { Fields, MOST_LAYERS } from "./fields.js";
import type { WeightDType } from "./types.js";
import {
  loadWeights,
  placesIn,
  type Source,
  type SourceOf,
  type TensorPlaces,
  weightFiles,
} from "./weights.js";

/** FLUX.1's autoencoder as published. */
const FLUX_VAE: VaeConfigNative = {
  inChannels: 3,
  outChannels: 3,
  latentChannels: 16,
  blockOutChannels: [128, 256, 512, 512],
  layersPerBlock: 2,
  normNumGroups: 32,
  midBlockAddAttention: true,
  useQuantConv: false,
  usePostQuantConv: false,
  scalingFactor: 0.3611,
  shiftFactor: 0.1159,
};

/** `vae/config.json`. @throws {DanceError} `ERR_CONFIG` naming the field. */
export async function readVaeConfig(path: string): Promise<VaeConfigNative> {
  const fields = await Fields.read(path);
  return {
    inChannels: fields.count("in_channels", 3),
    outChannels: fields.count("out_channels", 3),
    latentChannels: fields.count("latent_channels", 4),
    blockOutChannels: fields.counts("block_out_channels"),
    layersPerBlock: fields.count("layers_per_block", 1, MOST_LAYERS),
    normNumGroups: fields.count("norm_num_groups", 32),
    midBlockAddAttention: fields.flag("mid_block_add_attention", true),
    useQuantConv: fields.flag("use_quant_conv", true),
    usePostQuantConv: fields.flag("use_post_quant_conv", true),
    scalingFactor: fields.number("scaling_factor", 0.18215),
    shiftFactor: fields.number("shift_factor", 0),
  };
}

// Names inside a resnet and around the middle, ours (diffusers) to BFL's. The attention's linear layers are 1x1 convolutions there.
const RENAMED: readonly (readonly [RegExp, string])[] = [
  [/\.mid_block\.resnets\.0\./, ".mid.block_1."],
  [/\.mid_block\.resnets\.1\./, ".mid.block_2."],
  [/\.mid_block\.attentions\.0\.group_norm\./, ".mid.attn_1.norm."],
  [/\.mid_block\.attentions\.0\.to_([qkv])\./, ".mid.attn_1.$1."],
  [/\.mid_block\.attentions\.0\.to_out\.0\./, ".mid.attn_1.proj_out."],
  [/\.down_blocks\.(\d+)\.resnets\.(\d+)\./, ".down.$1.block.$2."],
  [/\.down_blocks\.(\d+)\.downsamplers\.0\./, ".down.$1.downsample."],
  [/\.conv_norm_out\./, ".norm_out."],
  [/\.conv_shortcut\./, ".nin_shortcut."],
];

function bflSource(config: VaeConfigNative): SourceOf {
  const last = config.blockOutChannels.length - 1;
  return (parameter): Source => {
    // BFL counts the decoder's levels from the other end.
    let tensor = parameter
      .replace(
        /\.up_blocks\.(\d+)\.resnets\.(\d+)\./,
        (_, up, resnet) => `.up.${last - Number(up)}.block.${resnet}.`,
      )
      .replace(/\.up_blocks\.(\d+)\.upsamplers\.0\./, (_, up) => `.up.${last - Number(up)}.upsample.`);
    for (const [ours, theirs] of RENAMED) tensor = tensor.replace(ours, theirs);
    return { tensor };
  };
}

export interface LoadedVae {
  config: VaeConfigNative;
  model: NativeVae;
  /** Pixels per latent along a side. */
  factor: number;
}

async function create(
  device: Device,
  config: VaeConfigNative,
  weights: WeightDType,
  places: TensorPlaces,
  sourceOf?: SourceOf,
  signal?: AbortSignal,
): Promise<LoadedVae> {
  let model: NativeVae;
  try {
    model = device.handle.createVae(config, weights);
  } catch (error) {
    throw DanceError.from(error);
  }
  try {
    await loadWeights(model, places, sourceOf, signal);
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { config, model, factor: 2 ** (config.blockOutChannels.length - 1) };
}

/** A `vae/` folder of a diffusers pipeline. */
export async function loadVaeFolder(
  device: Device,
  folder: string,
  weights: WeightDType,
  signal?: AbortSignal,
): Promise<LoadedVae> {
  const config = await readVaeConfig(join(folder, "config.json"));
  const places = placesIn(await weightFiles(folder, "diffusion_pytorch_model"));
  return create(device, config, weights, places, undefined, signal);
}

/** `ae.safetensors`; a `config.json` in the diffusers spelling beside it is used when there is one. */
export async function loadVaeFile(
  device: Device,
  file: string,
  weights: WeightDType,
  signal?: AbortSignal,
): Promise<LoadedVae> {
  const config = await readVaeConfig(join(dirname(file), "config.json")).catch((error: DanceError) => {
    if (error.code === "ERR_FILE") return FLUX_VAE;
    throw error;
  });
  return create(device, config, weights, placesIn([file]), bflSource(config), signal);
}
