/**
 * Everything that a training run can be told. The comments of the fields are the manual; defaults are those of {@link defaults}.
 *
 * A configuration file is JSON with these fields; `preset` names a starting point and the rest overrides it.
 */
import type { WeightDType } from "../models/types.js";
import type { GradientSharding, StepKind } from "../native.js";
import type { DeviceOptions } from "../options.js";
import type { RewardConfig } from "../rewards/types.js";
import { trainingSeed } from "../seed.js";

export type { RewardConfig };

export interface ModelConfig {
  /** Folder in the diffusers layout, or one with `flux1-dev.safetensors` and `ae.safetensors`. Relative to the configuration file. */
  path: string;
  /** Storage of the matrices on the device. Default `f32` on the CPU, `bf16` elsewhere. Arithmetic is f32 or wider either way. */
  dtype?: WeightDType;
}

/** Train low-rank adapters instead of the model. */
export interface LoraConfig {
  rank: number;
  /** The adapter's effect is multiplied by alpha / rank. */
  alpha: number;
  /** Layer names, whole or their last parts: `["to_q", "to_k", "to_v", "to_out.0"]`. */
  targets: string[];
}

/** How pictures are sampled for learning. */
export interface SamplingConfig {
  /** Pixels; multiples of 16 for FLUX. */
  width: number;
  height: number;
  /** Steps from noise to picture. The last one is never learned from. */
  steps: number;
  /** Noise schedule: a fixed `shift` s maps t to s t / (1 + (s - 1) t); `"dynamic"` uses the model's resolution-dependent shift. */
  shift: number | "dynamic";
  /** Distilled guidance; ignored by models without it. */
  guidance: number;
  /** `dance-sde`, `flow-sde` or `cps`. */
  kind: Exclude<StepKind, "ode">;
  /** Amount of noise per step: eta of dance-sde, a of flow-sde and cps. */
  eta: number;
  /** Take noisy steps only inside a window and deterministic ones outside (MixGRPO); only the window is learned from. */
  window?: WindowConfig;
  /** Pictures in one forward pass of the rollout. Any number gives the same pictures. */
  batch: number;
  /** All pictures of a group start from the same noise. */
  sameNoise: boolean;
}

export interface WindowConfig {
  /** Steps in the window. */
  size: number;
  /** `fixed`: the noisiest steps; `progressive`: from noise to picture; `random`: anywhere, from the seed. */
  strategy: "fixed" | "progressive" | "random";
  /** `progressive` advances by this many steps at a time; default 1. */
  stride?: number;
  /** It moves every so many iterations; past the end it starts again. Default 25. */
  interval?: number;
}

/** How the model learns from scored pictures. */
export interface LearningConfig {
  learningRate: number;
  /** `constant`, or linearly down to 0 at the last iteration. */
  schedule: "constant" | "linear";
  /** Updates over which the learning rate rises to its value. */
  warmup: number;
  adam: { beta1: number; beta2: number; eps: number; weightDecay: number };
  /** Gradients are scaled down to this global norm; 0: never. */
  clipNorm: number;
  /** The ratio counts within 1 - clipRange and 1 + clipRange. */
  clipRange: number;
  /** Advantages are clamped to +- this. */
  clipAdvantage: number;
  /** `group`: (reward - mean) / std within the pictures of a prompt; `batch`: over all pictures of the iteration. */
  advantage: "group" | "batch";
  /**
   * With several rewards: `sum`: advantages of the weighted sum of scores, so the reward with the largest spread leads; `per-reward`: each
   * reward has advantages of its own and their weighted mean counts, so that none leads by its scale alone (as MixGRPO and GDPO do).
   */
  mixture: "sum" | "per-reward";
  /** Share of a picture's transitions that is learned from, chosen at random per picture. */
  timestepFraction: number;
  /** Pictures per optimizer update, of all ranks together. */
  accumulate: number;
  /** Transitions in one forward and backward pass. Any number gives the same first ratios. */
  microbatch: number;
  /** Blocks whose activations are computed again in backward: `none`, `all`, `auto` (as many as memory asks for) or a number. */
  recompute: "none" | "all" | "auto" | number;
  /** Running average of the weights for evaluation and saving; 0: none. */
  emaDecay: number;
  /** Train adapters; absent: the model itself. */
  lora?: LoraConfig;
  /** Only parameters whose names match one of these regular expressions train; absent: all. Not with `lora`. */
  trainable?: string[];
}

export interface EvaluationConfig {
  /** Every so many iterations, and before the first and after the last; 0: never. */
  every: number;
  /** File of held-out prompts, or the prompts themselves. */
  prompts: string | string[];
  /** Pictures per prompt, each with a noise of its own that stays the same over all evaluations. */
  picturesPerPrompt: number;
  /** Default: the training rewards. */
  rewards?: RewardConfig[];
  steps: number;
  /** `ode`: deterministic; otherwise as in training. */
  kind: StepKind;
  batch: number;
  /** How many pictures are saved for the report. */
  save: number;
}

export interface OutputConfig {
  /** Run folder; it must be empty or hold a run to resume. */
  folder: string;
  /** Checkpoint every so many iterations; 0: only at the end. */
  checkpointEvery: number;
  /** How many checkpoints are kept. */
  keep: number;
  /** Save pictures of every so many iterations; 0: none. */
  picturesEvery: number;
  /** Pictures are encoded and written while the run goes on; `false`: before they are scored, to see what that saves. */
  saveInBackground: boolean;
  /**
   * Look at the pictures of every iteration for what loss and reward hide (seams between patches, a grid, dead or saturated areas, shifted
   * colours) beside those of the first; what is seen stands in the metrics and is warned of. Default false.
   */
  pictureCheck?: boolean;
}

/**
 * How several ranks (processes with a device each, see `danceflux launch`) train one model. Numbers elsewhere are those of all ranks together:
 * prompts, pictures, updates. All ranks see one `output.folder`. A run may go on with another number of ranks.
 */
export interface DistributedConfig {
  /**
   * What a rank keeps for itself alone. `none`: nothing; every rank has all. `optimizer`: each rank has moments, masters and averages of its
   * share of the weights (ZeRO-1). `optimizer+gradients`: also gradients go to their rank as soon as they are summed, and no rank holds all
   * of them (ZeRO-2); then every backward pass is summed over ranks, where otherwise only the last one of an update is.
   */
  sharding: GradientSharding;
  /**
   * `fast`: gradients are summed within a rank, then over ranks. `ordered`: they are summed picture by picture in one tree, so that 1, 2, 4
   * ... ranks give the same weights, bit for bit; costs about log2(pictures of an update on a rank) times the memory of the gradients.
   */
  collective: "fast" | "ordered";
  /** Gradients travel in pieces of so many MiB, the first while backward still runs. Smaller ones start sooner, larger ones cost less. */
  bucketMiB: number;
  /**
   * The pictures of a prompt may be made by several ranks; otherwise `promptsPerIteration` must be a multiple of the ranks. Advantages are
   * those of the whole group either way.
   */
  groupSpansRanks: boolean;
  /** Gradients travel while backward still runs; `false`: after it, to see what that saves. */
  overlap: boolean;
}

/** Habits of DanceGRPO that bitwise comparison with it needs. All off by default but `integerTimesteps`. */
export interface CompatConfig {
  /** Timesteps reach the network rounded to bf16, as under autocast: sigma * 1000 -> 976, 952, ... and guidance 3.5 -> 3504. */
  bf16Timesteps: boolean;
  /** Timesteps are truncated to whole numbers before the network sees them, as its trainer does. Default true. */
  integerTimesteps: boolean;
  /** Every epoch takes the prompts in the same order. */
  sameOrderEveryEpoch: boolean;
  /** Prompts share their initial noise. */
  noiseSharedAcrossPrompts: boolean;
}

export interface TrainConfig {
  model: ModelConfig;
  device: { name: string } & DeviceOptions;
  /** File (.txt: one prompt a line; .jsonl: objects with `prompt`), or the prompts themselves. */
  prompts: string | string[];
  /** Pictures are grouped by prompt; this many prompts per iteration, over all ranks, ... */
  promptsPerIteration: number;
  /** ... and this many pictures per prompt. */
  groupSize: number;
  iterations: number;
  seed: number;
  /** Cache embeddings here; absent: only in memory. */
  embeddingCache?: string;
  sampling: SamplingConfig;
  learning: LearningConfig;
  rewards: RewardConfig[];
  evaluation: EvaluationConfig;
  output: OutputConfig;
  distributed: DistributedConfig;
  compat: CompatConfig;
}

/** A configuration as people write it: a preset and what differs from it. */
export type PartialConfig = { preset?: string } & DeepPartial<TrainConfig>;

export type DeepPartial<T> = T extends (infer _)[]
  ? T
  : T extends object
    ? { [K in keyof T]?: DeepPartial<T[K]> }
    : T;

/** DanceGRPO's common settings where a field has one; otherwise what a first run wants. */
export const defaults: Omit<TrainConfig, "model" | "prompts" | "rewards"> = {
  device: { name: "cpu" },
  promptsPerIteration: 1,
  groupSize: 12,
  iterations: 300,
  get seed(): number {
    return trainingSeed();
  },
  sampling: {
    width: 720,
    height: 720,
    steps: 16,
    shift: 3,
    guidance: 3.5,
    kind: "dance-sde",
    eta: 0.3,
    batch: 4,
    sameNoise: true,
  },
  learning: {
    learningRate: 1e-5,
    schedule: "constant",
    warmup: 0,
    adam: { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 1e-4 },
    clipNorm: 1,
    clipRange: 1e-4,
    clipAdvantage: 5,
    advantage: "group",
    mixture: "sum",
    timestepFraction: 0.6,
    accumulate: 4,
    microbatch: 1,
    recompute: "auto",
    emaDecay: 0,
  },
  evaluation: { every: 0, prompts: [], picturesPerPrompt: 1, steps: 28, kind: "ode", batch: 4, save: 12 },
  output: { folder: "runs/train", checkpointEvery: 40, keep: 2, picturesEvery: 0, saveInBackground: true },
  distributed: { sharding: "none", collective: "fast", bucketMiB: 25, groupSpansRanks: false, overlap: true },
  compat: {
    bf16Timesteps: false,
    integerTimesteps: true,
    sameOrderEveryEpoch: false,
    noiseSharedAcrossPrompts: false,
  },
};
