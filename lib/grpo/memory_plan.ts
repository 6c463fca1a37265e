/**
 * How much device memory a rank of a training run takes, told before anything is loaded: from the configuration and the model's sizes.
 *
 * What stays for the whole run is exact (each tensor rounded up as the device's pool does); activations are counted over the model's ops
 * (activations.ts); what a vendor's library takes for itself is not in it.
 */
import { elementsOf, fluxTensors, isTarget, loraTensors, type StoredTensor } from "../models/flux_shapes.js";
import type { FluxConfig, WeightDType } from "../models/types.js";
import { modulationTableSize } from "../sample/modulation_table.js";
import { type PassShape, pooled, samplingPassBytes, trainingPassBytes } from "./activations.js";
import type { TrainConfig } from "./config.js";
import { gradientBuckets } from "./gradient_buckets.js";
import { recomputedBlocks } from "./recompute.js";

/** What the ranks share out among them: nothing, the optimizer's state, or the gradients too. */
export const SHARDINGS = ["none", "optimizer", "optimizer+gradients"] as const;
export type Sharding = (typeof SHARDINGS)[number];

/** A model beside the transformer. */
export interface OtherModel {
  name: string;
  bytes: number;
  /** Text encoders are freed once the prompts are encoded. */
  until: "encoded" | "end";
  /** The sizes are those of the published model, because its files are not at hand. */
  assumed: boolean;
}

export interface MemoryInputs {
  config: TrainConfig;
  flux: FluxConfig;
  textTokens: number;
  others: OtherModel[];
  vae: { channels: number[]; factor: number };
  world: number;
  sharding: Sharding;
  /** Bytes; undefined: not told, so nothing is judged. */
  deviceMemory: number | undefined;
}

export interface MemoryPlan {
  /** Of one rank, in bytes. What lasts for the whole run: */
  lasting: {
    weights: number;
    gradients: number;
    /** Masters (16-bit weights only) and both moments. */
    optimizer: number;
    average: number;
    otherModels: number;
    communication: number;
  };
  /** Of `communication`, what the communicator takes beside the device's pool: HCCL's buffers, shared memory of the host. */
  outsidePool: number;
  /** What comes on top of it, by stage; while encoding, on top of weights and other models only. */
  stages: Record<Stage, number>;
  /** Blocks that are recomputed, of how many. */
  recompute: { blocks: number; of: number };
  /** Of a training pass without and with recompute of all blocks. */
  activations: { none: number; all: number; planned: number };
  /** Of the largest stage, with what lasts. */
  peak: number;
  /** The stage that needs most. */
  peakStage: Stage;
  parameters: { all: number; trained: number };
  /** Bytes that may be used; undefined when the device's memory was not told. */
  usable: number | undefined;
  fits: boolean | undefined;
}

const STAGES = ["encode", "rollout", "update"] as const;
export type Stage = (typeof STAGES)[number];

const SIZE: Record<WeightDType, number> = { f32: 4, bf16: 2, f16: 2 };
const MIB = 2 ** 20;
/** Gradients travel in buckets, so many under way. */
const BUCKETS_UNDER_WAY = 4;
const HCCL_BUFFER_MIB = 200;
/** What a rank has in shared memory for others of its host. */
const SHARED_MEMORY = 8 * MIB;
/** Share of the device's memory that tensors can have: drivers, contexts and libraries take the rest. */
const USABLE = 0.95;

const isCpu = ({ device }: TrainConfig) => device.name === "cpu";

export const weightDType = (config: TrainConfig): WeightDType =>
  config.model.dtype ?? (isCpu(config) ? "f32" : "bf16");

const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);

interface Trained {
  /** Tensors that have a gradient: whole, even where only a part of one trains. */
  stored: StoredTensor[];
  /** Elements of every part that trains, and whether it is a matrix of the model's. */
  parts: { elements: number; matrix: boolean }[];
}

/** Which of the model's own parameters train where there are no adapters. */
function wantedOf({ learning: { trainable } }: TrainConfig): (name: string) => boolean {
  const patterns = trainable?.map((pattern) => new RegExp(pattern));
  return (name) => !patterns || patterns.some((pattern) => pattern.test(name));
}

function trainedOf(config: TrainConfig, flux: FluxConfig): Trained {
  const { lora } = config.learning;
  const wanted = wantedOf(config);
  const tensors = lora ? loraTensors(flux, lora) : fluxTensors(flux);
  const chosen = (stored: StoredTensor) => stored.parts.filter(({ name }) => lora || wanted(name));
  return {
    stored: tensors.filter((stored) => chosen(stored).length > 0),
    parts: tensors.flatMap((stored) =>
      chosen(stored).map(({ rows }) => ({ elements: rows * stored.columns, matrix: stored.matrix })),
    ),
  };
}

function lastingOf(inputs: MemoryInputs, trained: Trained, communication: number): MemoryPlan["lasting"] {
  const { config, flux, others, world, sharding } = inputs;
  const size = SIZE[weightDType(config)];
  const tensors = [
    ...fluxTensors(flux),
    ...(config.learning.lora ? loraTensors(flux, config.learning.lora) : []),
  ];
  const weights = sum(tensors.map((tensor) => pooled(elementsOf(tensor) * (tensor.matrix ? size : 4))));
  const share = (bytes: number, shared: boolean) => (shared ? Math.ceil(bytes / world) : bytes);
  const states = trained.parts.map(({ elements, matrix }) => ({
    // Of f32 weights the weight is its own master.
    masters: matrix && size < 4 ? pooled(elements * 4) : 0,
    moment: pooled(elements * 4),
  }));
  const optimizer = sum(states.map(({ masters, moment }) => masters + 2 * moment));
  const average = config.learning.emaDecay > 0 ? sum(states.map(({ moment }) => moment)) : 0;
  const { bucketMiB } = config.distributed;
  const gradients = sum(gradientBuckets(trained.stored, { bucketMiB, world, mixed: size < 4 }).map(pooled));
  return {
    weights,
    gradients: share(gradients, sharding === "optimizer+gradients"),
    optimizer: share(optimizer, sharding !== "none"),
    average: share(average, sharding !== "none"),
    otherModels: sum(others.filter(({ until }) => until === "end").map(({ bytes }) => bytes)),
    communication,
  };
}

/** Gradients under way, and what the communicator takes for itself. */
function communicationOf(
  { config, world, sharding }: MemoryInputs,
  trained: Trained,
): { buckets: number; outsidePool: number } {
  if (world === 1) return { buckets: 0, outsidePool: 0 };
  const largest = Math.max(...trained.stored.map((tensor) => elementsOf(tensor) * 4), 0);
  // A gradient that is shared out exists whole until its bucket is summed up.
  const buckets =
    BUCKETS_UNDER_WAY * config.distributed.bucketMiB * MIB +
    (sharding === "optimizer+gradients" ? 2 * largest : 0);
  const { name, hccl } = config.device;
  const hcclMiB = hccl?.bufferSizeMiB ?? (Number(process.env.HCCL_BUFFSIZE) || HCCL_BUFFER_MIB);
  if (name.startsWith("ascend")) return { buckets, outsidePool: 2 * hcclMiB * MIB };
  return { buckets, outsidePool: isCpu(config) ? SHARED_MEMORY : 0 };
}

/** Largest tensors of decoding: the last level's first block at full size, its input, its norm and its first half. */
function decodingBytes({ config, vae }: MemoryInputs, rows: number, bytes: number): number {
  const { width, height } = config.sampling;
  const first = vae.channels[0]!;
  const second = vae.channels[1] ?? first;
  return rows * width * height * (2 * second + first) * bytes;
}

/** A pass over so many rows as the configuration trains it. */
export function passShape(
  config: TrainConfig,
  flux: FluxConfig,
  tokens: Pick<PassShape, "imageTokens" | "textTokens">,
  rows: number,
): PassShape {
  const { lora } = config.learning;
  const wanted = wantedOf(config);
  return {
    flux,
    rows,
    ...tokens,
    bytes: isCpu(config) ? 4 : SIZE[weightDType(config)],
    trains: (module) => (lora ? isTarget(lora.targets, module) : wanted(`${module}.weight`)),
    rank: lora?.rank ?? 0,
  };
}

function passOf({ config, flux, textTokens, vae }: MemoryInputs, rows: number): PassShape {
  const token = vae.factor * 2;
  const { width, height } = config.sampling;
  return passShape(config, flux, { imageTokens: (width / token) * (height / token), textTokens }, rows);
}

/** The table that holds a batch's modulations of all steps, where rows do not depend on their number. */
function modulationBytes({ config, flux }: MemoryInputs, { bytes }: PassShape): number {
  if ((config.device.determinism ?? "strict") !== "strict") return 0;
  const { batch, steps } = config.sampling;
  const prompts = Math.min(batch, config.promptsPerIteration);
  return pooled(modulationTableSize(flux, steps * prompts) * bytes);
}

/** Pictures of an iteration that are one rank's, and the most prompts that they may be of. */
export function rankShare({ config, world }: Pick<MemoryInputs, "config" | "world">): {
  pictures: number;
  prompts: number;
} {
  const { promptsPerIteration, groupSize, distributed } = config;
  const pictures = Math.ceil((promptsPerIteration * groupSize) / world);
  const spread = distributed.groupSpansRanks;
  return {
    pictures,
    prompts: spread ? Math.min(promptsPerIteration, pictures) : Math.ceil(promptsPerIteration / world),
  };
}

/** Trajectories, pictures and embeddings of a rank's part of an iteration. */
function iterationBytes(inputs: MemoryInputs, imageTokens: number): number {
  const { config, flux, textTokens } = inputs;
  const { sampling } = config;
  const { pictures, prompts } = rankShare(inputs);
  const noisy = Math.min(sampling.window?.size ?? sampling.steps, sampling.steps - 1);
  const states = noisy + (noisy < sampling.steps ? 2 : 1);
  const trajectory = states * imageTokens * flux.inChannels * 4;
  const picture = 3 * sampling.width * sampling.height * 4;
  const embedding = (textTokens * flux.jointAttentionDim + flux.pooledProjectionDim) * 4;
  return pictures * (trajectory + picture) + prompts * embedding;
}

/** The plan of one rank. */
export function planMemory(inputs: MemoryInputs): MemoryPlan {
  const { config, flux, others, deviceMemory } = inputs;
  const trained = trainedOf(config, flux);
  const { buckets, outsidePool } = communicationOf(inputs, trained);
  const lasting = lastingOf(inputs, trained, buckets + outsidePool);
  const base = sum(Object.values(lasting));
  const sampling = passOf(inputs, config.sampling.batch);
  const training = passOf(inputs, config.learning.microbatch);
  const usable = deviceMemory === undefined ? undefined : Math.floor(deviceMemory * USABLE);
  const iteration = iterationBytes(inputs, sampling.imageTokens);
  const blocks = recomputedBlocks(
    config.learning.recompute,
    training,
    usable === undefined ? undefined : usable - base - iteration,
  );
  const activations = {
    none: trainingPassBytes(training, 0),
    all: trainingPassBytes(training, -1),
    planned: trainingPassBytes(training, blocks),
  };
  const rollout = Math.max(
    samplingPassBytes(sampling) + modulationBytes(inputs, sampling),
    decodingBytes(inputs, config.sampling.batch, sampling.bytes),
  );
  const stages = {
    encode: sum(others.filter(({ until }) => until === "encoded").map(({ bytes }) => bytes)),
    rollout: iteration + rollout,
    update: iteration + activations.planned,
  };
  const totals = {
    // Text encoders are gone before gradients and optimizer come.
    encode: lasting.weights + lasting.otherModels + stages.encode,
    rollout: base + stages.rollout,
    update: base + stages.update,
  };
  const peakStage = STAGES.reduce((most, stage) => (totals[stage] > totals[most] ? stage : most));
  const peak = totals[peakStage];
  return {
    lasting,
    outsidePool,
    stages,
    recompute: { blocks, of: flux.numLayers + flux.numSingleLayers },
    activations,
    peak,
    peakStage,
    parameters: {
      all: sum(fluxTensors(flux).map(elementsOf)),
      trained: sum(trained.parts.map(({ elements }) => elements)),
    },
    usable,
    fits: usable === undefined ? undefined : peak <= usable,
  };
}

/** A change that would help, with what the plan is after it and those before it. */
export interface Suggestion {
  change: string;
  peak: number;
  fits: boolean;
}

type Change = [string, (inputs: MemoryInputs) => MemoryInputs | undefined];

const learning = (inputs: MemoryInputs, changes: Partial<TrainConfig["learning"]>): MemoryInputs => ({
  ...inputs,
  config: { ...inputs.config, learning: { ...inputs.config.learning, ...changes } },
});

/** From what costs nothing to what changes the training. */
const CHANGES: Change[] = [
  [
    "--sharding optimizer",
    (i) => (i.world > 1 && i.sharding === "none" ? { ...i, sharding: "optimizer" } : undefined),
  ],
  [
    "--sharding optimizer+gradients",
    (i) =>
      i.world > 1 && i.sharding === "optimizer" ? { ...i, sharding: "optimizer+gradients" } : undefined,
  ],
  [
    "--set learning.recompute=all",
    (i) =>
      ["all", "auto"].includes(String(i.config.learning.recompute))
        ? undefined
        : learning(i, { recompute: "all" }),
  ],
  [
    "--set learning.microbatch=1",
    (i) => (i.config.learning.microbatch > 1 ? learning(i, { microbatch: 1 }) : undefined),
  ],
  [
    "--set sampling.batch=1",
    (i) =>
      i.config.sampling.batch > 1
        ? { ...i, config: { ...i.config, sampling: { ...i.config.sampling, batch: 1 } } }
        : undefined,
  ],
  [
    "--set model.dtype=bf16",
    (i) =>
      weightDType(i.config) === "f32"
        ? { ...i, config: { ...i.config, model: { ...i.config.model, dtype: "bf16" } } }
        : undefined,
  ],
  [
    "--set learning.emaDecay=0",
    (i) => (i.config.learning.emaDecay > 0 ? learning(i, { emaDecay: 0 }) : undefined),
  ],
  [
    "learning.lora of rank 16 on to_q, to_k, to_v, to_out.0",
    (i) => {
      if (i.config.learning.lora) return undefined;
      const lora = { rank: 16, alpha: 16, targets: ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"] };
      const { trainable: _, ...rest } = i.config.learning;
      return { ...i, config: { ...i.config, learning: { ...rest, lora } } };
    },
  ],
];

/** What to change, one after the other, until it fits; only what lowers the peak. Empty when it fits already. */
export function suggestions(inputs: MemoryInputs): Suggestion[] {
  const found: Suggestion[] = [];
  let now = inputs;
  let plan = planMemory(inputs);
  for (const [change, apply] of CHANGES) {
    if (plan.fits !== false) break;
    const next = apply(now);
    if (!next) continue;
    const after = planMemory(next);
    if (after.peak >= plan.peak) continue;
    found.push({ change, peak: after.peak, fits: after.fits === true });
    now = next;
    plan = after;
  }
  return found;
}
