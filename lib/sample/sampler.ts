/**
 * From noise to pictures: the loop over the noise levels. The network's work is one job per batch and step.
 *
 * Legend: B rows of a batch, L tokens, C packed channels.
 */
import { createHash } from "node:crypto";
import { DanceError } from "../errors.js";
import type { Pipeline, PromptEmbedding } from "../models/types.js";
import { type NativeTensor, type NoiseKey, runJob, type SampleStepResult, type StepKind } from "../native.js";
import { modulationTableSize } from "./modulation_table.js";
import { networkGuidance, networkTimestep, sigmaSchedule } from "./schedule.js";

/** Keeps draws for different purposes apart. */
export const NOISE = { initial: 0, step: 1, evaluation: 2, permutation: 3, window: 4 } as const;

/** 32 bits that stand for a prompt in noise keys, so that a prompt draws the same noise wherever it stands in a file. */
export function promptKey(prompt: string): number {
  return createHash("sha256").update(prompt).digest().readUInt32LE(0);
}

/**
 * Noise that stays the same over all evaluations of a run, and is that of `danceflux sample` with the same seed. `timestep` 0 is the initial
 * noise, `step + 1` that of a step.
 */
export const evaluationKey = (seed: bigint, prompt: string, sample: number, timestep: number): NoiseKey => ({
  seed,
  iteration: 0,
  prompt: promptKey(prompt),
  sample,
  timestep,
  purpose: NOISE.evaluation,
});

/** Tokens of a picture: each covers twice the autoencoder's factor along a side. */
export interface Grid {
  rows: number;
  columns: number;
}

/** @throws {DanceError} `ERR_OPTION` when the picture is not a whole number of tokens. */
export function gridOf(pipeline: Pipeline, width: number, height: number): Grid {
  const token = pipeline.vaeFactor * 2;
  for (const [name, pixels] of Object.entries({ width, height })) {
    if (!Number.isInteger(pixels) || pixels < token || pixels % token !== 0) {
      throw new DanceError("ERR_OPTION", `${name}: expected a multiple of ${token} pixels, got ${pixels}`);
    }
  }
  return { rows: height / token, columns: width / token };
}

/** How a whole picture is sampled; the same for all rows. */
export interface SamplePlan {
  grid: Grid;
  /** steps + 1 noise levels. */
  sigmas: Float32Array;
  /** What kind of step each is. The last one is always taken without noise. */
  kinds: StepKind[];
  eta: number;
  guidance: number;
  integerTimesteps: boolean;
  bf16Timesteps: boolean;
}

export interface PlanOptions {
  width: number;
  height: number;
  steps: number;
  shift: number | "dynamic";
  kind: StepKind;
  eta: number;
  guidance: number;
  integerTimesteps?: boolean;
  bf16Timesteps?: boolean;
  /** Steps outside are taken without noise. Default: all inside. */
  window?: { first: number; size: number } | undefined;
}

export function samplePlan(pipeline: Pipeline, options: PlanOptions): SamplePlan {
  const grid = gridOf(pipeline, options.width, options.height);
  const sigmas = sigmaSchedule(options.steps, options.shift, grid.rows * grid.columns, pipeline.scheduler);
  const { first, size } = options.window ?? { first: 0, size: options.steps };
  const noisy = (step: number) => step >= first && step < first + size && step < options.steps - 1;
  return {
    grid,
    sigmas,
    kinds: Array.from({ length: options.steps }, (_, step) => (noisy(step) ? options.kind : "ode")),
    eta: options.eta,
    guidance: options.guidance,
    integerTimesteps: options.integerTimesteps ?? false,
    bf16Timesteps: options.bf16Timesteps ?? false,
  };
}

/** What the network is told about a step. */
export const timestepOf = (plan: SamplePlan, step: number): number =>
  networkTimestep(plan.sigmas[step]!, { integer: plan.integerTimesteps, bf16: plan.bf16Timesteps });

export const guidanceOf = (pipeline: Pipeline, plan: SamplePlan, rows: number): number[] =>
  pipeline.config.guidanceEmbeds ? Array(rows).fill(networkGuidance(plan.guidance, plan.bf16Timesteps)) : [];

/** One picture to be sampled. */
export interface SampleRow {
  embedding: PromptEmbedding;
  /** Key of the initial noise. */
  initial: NoiseKey;
  /** Key of the noise of a step. */
  stepNoise(step: number): NoiseKey;
}

/** One noisy step that was taken: what the update learns from. */
export interface TakenStep {
  step: number;
  latents: NativeTensor;
  next: NativeTensor;
  /** Per row. */
  logProbs: Float32Array;
}

/** The way of one batch. The tensors belong to the caller. */
export interface Trajectory extends Disposable {
  /** [B, L, C]: the denoised estimate of the last step, which is decoded. */
  readonly final: NativeTensor;
  /** The noisy steps, in order; empty unless they were asked for. */
  readonly steps: TakenStep[];
}

class BatchTrajectory implements Trajectory {
  readonly final: NativeTensor;
  readonly steps: TakenStep[];
  constructor(final: NativeTensor, steps: TakenStep[]) {
    this.final = final;
    this.steps = steps;
  }
  [Symbol.dispose](): void {
    this.final.dispose();
    for (const { latents, next } of this.steps) {
      latents.dispose();
      next.dispose();
    }
  }
}

/** Told every step of a batch while it is sampled. */
export interface SampleWatcher {
  /** Also computes the estimate of the end of each step. */
  readonly denoised?: boolean;
  before(step: number, latents: NativeTensor): Promise<void>;
  after(step: number, result: SampleStepResult): Promise<void>;
}

/** Distinct embeddings of the rows, and which one each row has. */
export function sharedEmbeddings(rows: { embedding: PromptEmbedding }[]): {
  prompts: number[];
  text: NativeTensor[];
  pooled: NativeTensor[];
} {
  const distinct = [...new Set(rows.map((row) => row.embedding))];
  return {
    prompts: rows.map((row) => distinct.indexOf(row.embedding)),
    text: distinct.map((embedding) => embedding.text),
    pooled: distinct.map((embedding) => embedding.pooled),
  };
}

/**
 * The modulations of all steps and prompts of a batch, row `step * prompts + prompt`: the weights that make them are read once instead of
 * once a step. Undefined where rows could come out otherwise than they do in the update, or where the table would be large.
 */
async function modulationTable(
  pipeline: Pipeline,
  plan: SamplePlan,
  pooled: NativeTensor[],
  signal: AbortSignal | undefined,
): Promise<NativeTensor | undefined> {
  const { config, device, transformer } = pipeline;
  const steps = plan.kinds.length;
  const rows = steps * pooled.length;
  if (device.determinism !== "strict" || modulationTableSize(config, rows) === 0) return undefined;
  const row = Array.from({ length: rows }, (_, index) => index);
  return runJob(
    transformer.modulations({
      pooled,
      prompts: row.map((index) => index % pooled.length),
      timesteps: row.map((index) => timestepOf(plan, Math.floor(index / pooled.length))),
      guidance: guidanceOf(pipeline, plan, rows),
    }),
    signal,
  );
}

/**
 * Samples one batch. With `keep` every noisy step's latents stay on the device with their log probabilities.
 *
 * The pictures of a row depend on its embedding and its keys alone, not on the batch.
 */
export async function sampleBatch(
  pipeline: Pipeline,
  plan: SamplePlan,
  rows: SampleRow[],
  options: { keep: boolean; signal?: AbortSignal; watch?: SampleWatcher },
): Promise<Trajectory> {
  const { signal, watch } = options;
  const shape = [plan.grid.rows * plan.grid.columns, pipeline.config.inChannels];
  const guidance = guidanceOf(pipeline, plan, rows.length);
  const shared = sharedEmbeddings(rows);
  const steps: (Omit<TakenStep, "logProbs"> & { logProbs: NativeTensor })[] = [];
  const alive = new Set<NativeTensor>();
  let latents = await runJob(
    pipeline.device.handle.noise(
      rows.map((row) => row.initial),
      shape,
    ),
    signal,
  );
  alive.add(latents);
  try {
    // Whoever watches sees every op of every step.
    const table = watch ? undefined : await modulationTable(pipeline, plan, shared.pooled, signal);
    if (table) alive.add(table);
    for (let step = 0; step < plan.kinds.length; step++) {
      const kind = plan.kinds[step]!;
      await watch?.before(step, latents);
      const result = await runJob(
        pipeline.transformer.sampleStep({
          ...shared,
          latents: rows.map((_, row) => ({ tensor: latents, row })),
          ...(table && {
            modulations: shared.prompts.map((prompt) => ({
              tensor: table,
              row: step * shared.pooled.length + prompt,
            })),
          }),
          timesteps: Array(rows.length).fill(timestepOf(plan, step)),
          guidance,
          gridRows: plan.grid.rows,
          gridColumns: plan.grid.columns,
          kind,
          eta: plan.eta,
          sigmas: Array(rows.length).fill(plan.sigmas[step]!),
          nextSigmas: Array(rows.length).fill(plan.sigmas[step + 1]!),
          ...(kind === "ode" ? {} : { noise: rows.map((row) => row.stepNoise(step)) }),
          denoised: watch?.denoised ?? false,
        }),
        signal,
      );
      const { denoised, logProbs } = result;
      for (const tensor of Object.values(result)) alive.add(tensor);
      await watch?.after(step, result);
      if (denoised) release(alive, denoised);
      const kept = options.keep && logProbs !== undefined;
      if (logProbs && !kept) release(alive, logProbs);
      if (kept) steps.push({ step, latents, next: result.latents, logProbs });
      else if (!steps.some((taken) => taken.next === latents)) release(alive, latents);
      latents = result.latents;
    }
    if (table) release(alive, table);
    // Only now does the host wait for the device.
    const taken: TakenStep[] = [];
    for (const { logProbs, ...entry } of steps) {
      taken.push({ ...entry, logProbs: await runJob(logProbs.download(), signal) });
      release(alive, logProbs);
    }
    return new BatchTrajectory(latents, taken);
  } catch (error) {
    for (const tensor of alive) tensor.dispose();
    throw error;
  }
}

function release(alive: Set<NativeTensor>, tensor: NativeTensor): void {
  alive.delete(tensor);
  tensor.dispose();
}

/** Consecutive runs of at most `size` entries. */
export function* batches<T>(entries: readonly T[], size: number): Generator<T[]> {
  for (let start = 0; start < entries.length; start += size) yield entries.slice(start, start + size);
}
