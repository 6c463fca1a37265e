/** What a memory plan needs to know of the models, from configuration files and the headers of weight files; nothing is loaded. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { Fields } from "../models/fields.js";
import { FLUX_FILES, inspectFluxFile, readFluxConfig } from "../models/flux.js";
import type { FluxConfig, WeightDType } from "../models/types.js";
import { readVaeConfig } from "../models/vae.js";
import { firstFile, placesIn, type TensorPlaces, weightFiles } from "../models/weights.js";
import { pooled } from "./activations.js";
import type { RewardConfig, TrainConfig } from "./config.js";
import { type MemoryInputs, type OtherModel, type Sharding, weightDType } from "./memory_plan.js";

/** Parameters of the published models, for weights that are not at hand. */
const PUBLISHED = {
  "text encoder": 123_060_480,
  "second text encoder": 4_762_310_656,
  autoencoder: 83_819_683,
} as const;

const PUBLISHED_REWARDS: Readonly<Record<string, number>> = {
  "hps-v2.1": 986_109_441,
  pickscore: 986_109_441,
  clip: 427_616_513,
};

const FLUX_VAE = { channels: [128, 256, 512, 512], factor: 8 };

/** Matrices in the dtype they are stored in, vectors in f32. */
function storedBytes(places: TensorPlaces, dtype: WeightDType | undefined): number {
  let total = 0;
  for (const { shape, dtype: inFile } of places.values()) {
    const elements = shape.reduce((size, dim) => size * dim, 1);
    const half = dtype ? dtype !== "f32" : inFile === "F16" || inFile === "BF16";
    total += pooled(elements * (shape.length >= 2 && half ? 2 : 4));
  }
  return total;
}

async function headersOf(folder: string, base: string): Promise<TensorPlaces | undefined> {
  const files = await weightFiles(folder, base).catch(() => undefined);
  return files && placesIn(files);
}

type Published = keyof typeof PUBLISHED;

async function part(
  name: Published,
  until: OtherModel["until"],
  dtype: WeightDType,
  places: TensorPlaces | undefined,
): Promise<OtherModel> {
  const bytes = places ? storedBytes(places, dtype) : PUBLISHED[name] * (dtype === "f32" ? 4 : 2);
  return { name, bytes, until, assumed: !places };
}

async function rewardModel(config: RewardConfig): Promise<OtherModel | undefined> {
  const published = PUBLISHED_REWARDS[config.type];
  if (published === undefined) return undefined; // a function or another process
  const dtype = config.dtype as WeightDType | undefined;
  const path = config.path ?? "";
  const isFile = await stat(path).then(
    (info) => info.isFile(),
    () => false,
  );
  const file = isFile
    ? path
    : await firstFile(path, ["model.safetensors", "open_clip_pytorch_model.bin", "HPS_v2.1_compressed.pt"]);
  const bytes = file ? storedBytes(placesIn([file]), dtype) : published * (dtype === "f32" ? 4 : 2);
  return { name: config.name ?? config.type, bytes, until: "end", assumed: !file };
}

async function transformerConfig(folder: string, given: string | undefined): Promise<FluxConfig> {
  if (given) return readFluxConfig(given);
  const own = await firstFile(folder, ["transformer/config.json"]);
  if (own) return readFluxConfig(own);
  const file = await firstFile(folder, FLUX_FILES);
  if (file) return (await inspectFluxFile(file)).config;
  throw new DanceError(
    "ERR_FILE",
    `${folder}: expected transformer/config.json or ${FLUX_FILES[0]}, found neither`,
    {
      hint: "give the transformer's config.json with --model-config",
    },
  );
}

async function textLength(folder: string, { guidanceEmbeds }: FluxConfig): Promise<number> {
  const most = guidanceEmbeds ? 512 : 256;
  const path = join(folder, "tokenizer_2", "tokenizer_config.json");
  const told = await Fields.read(path).then(
    (fields) => fields.count("model_max_length", most),
    () => most,
  );
  return guidanceEmbeds ? told : Math.min(told, most);
}

export interface PlanOptions {
  /** The transformer's config.json, in place of the one in the model's folder. */
  modelConfig?: string | undefined;
  world: number;
  sharding: Sharding;
  deviceMemory: number | undefined;
}

/**
 * Reads what there is; what is missing is taken for the published model.
 *
 * @throws {DanceError} `ERR_FILE` when nothing tells the transformer's sizes; `ERR_CONFIG`.
 */
export async function memoryInputs(config: TrainConfig, options: PlanOptions): Promise<MemoryInputs> {
  const { path } = config.model;
  const dtype = weightDType(config);
  const flux = await transformerConfig(path, options.modelConfig);
  const vaeConfig = await firstFile(path, ["vae/config.json"]);
  const vae = vaeConfig ? await readVaeConfig(vaeConfig) : undefined;
  const single = await firstFile(path, ["ae.safetensors"]);
  const vaePlaces =
    (await headersOf(join(path, "vae"), "diffusion_pytorch_model")) ??
    (single ? placesIn([single]) : undefined);
  const wanted = [
    ...config.rewards,
    ...(config.evaluation.every > 0 ? (config.evaluation.rewards ?? []) : []),
  ];
  const distinct = new Map(
    wanted.map((reward) => [JSON.stringify([reward.type, reward.path, reward.dtype]), reward]),
  );
  const rewards = await Promise.all([...distinct.values()].map(rewardModel));
  return {
    config,
    flux,
    textTokens: await textLength(path, flux),
    others: [
      await part("text encoder", "encoded", dtype, await headersOf(join(path, "text_encoder"), "model")),
      await part(
        "second text encoder",
        "encoded",
        dtype,
        await headersOf(join(path, "text_encoder_2"), "model"),
      ),
      await part("autoencoder", "end", dtype, vaePlaces),
      ...rewards.filter((reward) => reward !== undefined),
    ],
    vae: vae ? { channels: vae.blockOutChannels, factor: 2 ** (vae.blockOutChannels.length - 1) } : FLUX_VAE,
    world: options.world,
    sharding: options.sharding,
    deviceMemory: options.deviceMemory,
  };
}
