/**
 * Learning from scored pictures: which transitions, in which order, and the updates.
 *
 * Order, as DanceGRPO has it: pictures in the order of the rollout, `accumulate` of them per update, over all ranks; of each a random share
 * of its noisy steps. A step's loss is divided by pictures times steps of the update, so that an update averages over all of them.
 */
import type { Pipeline } from "../models/types.js";
import {
  type CommunicationReport,
  type NativeOptimizer,
  type NativeTensor,
  type NoiseKey,
  native,
  type OptimizerStepResult,
  type PolicyStep,
  runJob,
} from "../native.js";
import {
  batches,
  guidanceOf,
  NOISE,
  promptKey,
  type SamplePlan,
  sharedEmbeddings,
  type TakenStep,
  timestepOf,
} from "../sample/sampler.js";
import type { LearningConfig } from "./config.js";
import type { StageRecorder } from "./recorder.js";
import type { Sample } from "./rollout.js";

/** One transition to learn from. */
interface Transition {
  sample: Sample;
  taken: TakenStep;
  advantage: number;
}

export interface UpdateOptions {
  learning: LearningConfig;
  /** Pictures of this rank in an update; the samples must be a multiple of it. */
  perUpdate: number;
  ranks: number;
  /** No rank has all gradients: they are not recorded then. */
  sharded: boolean;
  /** Sum picture by picture: no pass then holds transitions of two pictures. */
  ordered: boolean;
  plan: SamplePlan;
  seed: bigint;
  iteration: number;
  /** Blocks recomputed in backward: 0 none, -1 all. */
  recomputeBlocks: number;
  /** Of the next update, counted from 0 over the whole run. */
  learningRate: (update: number) => number;
  /** Updates done before this iteration. */
  updatesDone: number;
  signal?: AbortSignal;
  recorder?: StageRecorder | undefined;
  onMicrobatch?: (done: number, all: number) => void;
}

/** What an iteration's updates were like. */
export interface UpdateReport {
  updates: number;
  skipped: number;
  /** Per transition, in order. */
  ratios: number[];
  losses: number[];
  /** Ratios of the first update alone: exactly 1 in strict mode. */
  firstRatios: number[];
  clippedHigh: number;
  clippedLow: number;
  gradientNorms: number[];
  learningRate: number;
  /** Row-passes of the transformer, forward and backward. */
  transitions: number;
  communication: CommunicationReport;
  /** The most that training kept, in bytes. */
  memory: OptimizerStepResult["memory"];
}

/** 0 .. count - 1 in an order that depends on the key alone: sorted by keyed random bits. */
export function keyedOrder(key: NoiseKey, count: number): number[] {
  const draws = native().keyedNormal(key, count);
  return Array.from({ length: count }, (_, i) => i).sort((a, b) => draws[a]! - draws[b]! || a - b);
}

/** How many of `noisy` steps are learned from, at least one. */
export const trainedSteps = (noisy: number, fraction: number): number =>
  Math.max(1, Math.trunc(noisy * fraction));

function transitionsOf(sample: Sample, advantage: number, options: UpdateOptions): Transition[] {
  const { steps } = sample.trajectory;
  const key = {
    seed: options.seed,
    iteration: options.iteration,
    prompt: promptKey(sample.prompt),
    sample: sample.index,
    timestep: 0,
    purpose: NOISE.permutation,
  };
  const chosen = keyedOrder(key, steps.length).slice(
    0,
    trainedSteps(steps.length, options.learning.timestepFraction),
  );
  return chosen.map((index) => ({ sample, taken: steps[index]!, advantage }));
}

/** What one forward and backward pass is in its update. */
type Marks = Pick<PolicyStep, "synchronize" | "endsSample" | "samples">;

interface Pass extends Marks {
  transitions: Transition[];
}

/** The passes of an update, in order. */
function passesOf(pictures: Transition[][], { learning, ordered }: UpdateOptions): Pass[] {
  const { microbatch } = learning;
  const parts = ordered ? pictures : [pictures.flat()];
  const passes = parts.flatMap((transitions) =>
    [...batches(transitions, microbatch)].map(
      (part, i): Pass => ({
        transitions: part,
        endsSample: (i + 1) * microbatch >= transitions.length,
        samples: parts.length,
      }),
    ),
  );
  passes.at(-1)!.synchronize = true;
  return passes;
}

async function learn(
  pipeline: Pipeline,
  { transitions, ...marks }: Pass,
  lossDivisor: number,
  options: UpdateOptions,
): Promise<NativeTensor> {
  const { plan, learning } = options;
  const rows = (which: "latents" | "next") =>
    transitions.map(({ sample, taken }) => ({ tensor: taken[which], row: sample.row }));
  const job = pipeline.transformer.policyStep({
    ...sharedEmbeddings(transitions.map(({ sample }) => sample)),
    latents: rows("latents"),
    next: rows("next"),
    timesteps: transitions.map(({ taken }) => timestepOf(plan, taken.step)),
    guidance: guidanceOf(pipeline, plan, transitions.length),
    gridRows: plan.grid.rows,
    gridColumns: plan.grid.columns,
    kind: plan.kinds[transitions[0]!.taken.step]!,
    eta: plan.eta,
    sigmas: transitions.map(({ taken }) => plan.sigmas[taken.step]!),
    nextSigmas: transitions.map(({ taken }) => plan.sigmas[taken.step + 1]!),
    oldLogProbs: transitions.map(({ sample, taken }) => taken.logProbs[sample.row]!),
    advantages: transitions.map(({ advantage }) => advantage),
    clipRange: learning.clipRange,
    lossDivisor,
    recomputeBlocks: options.recomputeBlocks,
    ...marks,
  });
  return runJob(job, options.signal);
}

/** What the passes of an update found, on the device until all of them have been asked for: only then does the host wait. */
class Learned implements Disposable {
  readonly #passes: { transitions: Transition[]; numbers: NativeTensor }[] = [];
  transitions = 0;

  add(transitions: Transition[], numbers: NativeTensor): void {
    this.#passes.push({ transitions, numbers });
    this.transitions += transitions.length;
  }

  async note(report: UpdateReport, { learning, signal }: UpdateOptions): Promise<void> {
    for (const { transitions, numbers } of this.#passes)
      note(report, transitions, await runJob(numbers.download(), signal), learning.clipRange);
  }

  [Symbol.dispose](): void {
    for (const { numbers } of this.#passes) numbers.dispose();
  }
}

const emptyReport = (): UpdateReport => ({
  updates: 0,
  skipped: 0,
  ratios: [],
  losses: [],
  firstRatios: [],
  clippedHigh: 0,
  clippedLow: 0,
  gradientNorms: [],
  learningRate: 0,
  transitions: 0,
  communication: { secondsInFlight: 0, secondsWaited: 0, bytes: 0, collectives: 0, overlapped: 0 },
  memory: { gradients: 0, state: 0 },
});

/** Learns from all samples that this rank has of an iteration, in this order. `advantages` has one entry per sample. */
export async function update(
  pipeline: Pipeline,
  optimizer: NativeOptimizer,
  samples: Sample[],
  advantages: number[],
  options: UpdateOptions,
): Promise<UpdateReport> {
  const { learning } = options;
  const report = emptyReport();
  const perSample = trainedSteps(samples[0]!.trajectory.steps.length, learning.timestepFraction);
  const all = samples.length * perSample;
  const order = samples.map((sample, i) => ({ sample, advantage: advantages[i]! }));
  for (const part of batches(order, options.perUpdate)) {
    const pictures = part.map(({ sample, advantage }) => transitionsOf(sample, advantage, options));
    const lossDivisor = pictures.flat().length * options.ranks;
    const done = report.losses.length;
    using learned = new Learned();
    for (const [i, pass] of passesOf(pictures, options).entries()) {
      await options.recorder?.stage(`update/u${report.updates}`, i);
      learned.add(pass.transitions, await learn(pipeline, pass, lossDivisor, options));
      options.onMicrobatch?.(report.transitions + learned.transitions, all);
    }
    await learned.note(report, options);
    await recordLearned(pipeline, optimizer, report, done, options);
    const rate = options.learningRate(options.updatesDone + report.updates);
    const step = await runJob(optimizer.step(rate, learning.clipNorm), options.signal);
    await options.recorder?.stage(`update/u${report.updates}/weights`);
    options.recorder?.numbers("gradientNorm", [step.gradientNorm]);
    await options.recorder?.parameters(pipeline.transformer, "value");
    noteStep(report, rate, step);
  }
  return report;
}

/** What an update has learned from, and what came of it. */
async function recordLearned(
  pipeline: Pipeline,
  optimizer: NativeOptimizer,
  report: UpdateReport,
  done: number,
  { recorder, sharded }: UpdateOptions,
): Promise<void> {
  if (!recorder) return;
  await recorder.stage(`update/u${report.updates}/gradients`);
  recorder.numbers("ratios", report.ratios.slice(done));
  recorder.numbers("losses", report.losses.slice(done));
  if (sharded) return;
  await runJob(optimizer.settle());
  await recorder.parameters(pipeline.transformer, "gradient");
}

function noteStep(report: UpdateReport, rate: number, step: OptimizerStepResult): void {
  report.learningRate = rate;
  report.gradientNorms.push(step.gradientNorm);
  if (step.skipped) report.skipped++;
  report.updates++;
  for (const key of Object.keys(report.communication) as (keyof CommunicationReport)[])
    report.communication[key] += step.communication[key];
  report.memory = {
    gradients: Math.max(report.memory.gradients, step.memory.gradients),
    state: Math.max(report.memory.state, step.memory.state),
  };
}

/** `numbers`: ratios, log probabilities and losses of the transitions, one after the other. */
function note(report: UpdateReport, transitions: Transition[], numbers: Float32Array, clip: number): void {
  transitions.forEach(({ advantage }, i) => {
    const ratio = numbers[i]!;
    report.ratios.push(ratio);
    report.losses.push(numbers[2 * transitions.length + i]!);
    if (report.updates === 0) report.firstRatios.push(ratio);
    if (ratio > 1 + clip && advantage > 0) report.clippedHigh++;
    if (ratio < 1 - clip && advantage < 0) report.clippedLow++;
  });
  report.transitions += transitions.length;
}
