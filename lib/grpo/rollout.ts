/**
 * One iteration's pictures: for every prompt a group of samples, their trajectories, their decoded pictures.
 */
import type { Pipeline, PromptEmbedding } from "../models/types.js";
import { type NativeTensor, type NoiseKey, runJob, type SampleStepResult } from "../native.js";
import {
  batches,
  NOISE,
  promptKey,
  type SamplePlan,
  type SampleRow,
  type SampleWatcher,
  sampleBatch,
  type Trajectory,
} from "../sample/sampler.js";
import type { DealtPicture } from "./deal.js";
import type { StageRecorder } from "./recorder.js";

/** A prompt of this iteration that this rank makes pictures for. */
export interface IterationPrompt {
  prompt: string;
  embedding: PromptEmbedding;
}

/** One sampled picture and where its way lies. */
export interface Sample {
  prompt: string;
  embedding: PromptEmbedding;
  /** Which prompt of the iteration, and which picture of its group. */
  group: number;
  index: number;
  trajectory: Trajectory;
  /** Its row in the tensors of the trajectory and in `images`. */
  row: number;
  /** Decoded: [B, 3, h, w] about -1 to 1. */
  images: NativeTensor;
}

export interface RolloutOptions {
  seed: bigint;
  iteration: number;
  batch: number;
  sameNoise: boolean;
  noiseSharedAcrossPrompts: boolean;
  signal?: AbortSignal;
  recorder?: StageRecorder | undefined;
  /** Told after every batch: pictures done, pictures in all. */
  onBatch?: (done: number, all: number) => void;
}

/** The noise of one picture of a prompt. */
export function noiseKeys(
  options: Pick<RolloutOptions, "seed" | "iteration" | "sameNoise" | "noiseSharedAcrossPrompts">,
  prompt: string,
  index: number,
): Pick<SampleRow, "initial" | "stepNoise"> {
  const { seed, iteration } = options;
  const own = promptKey(prompt);
  const key = (purpose: number, timestep: number, which: { prompt: number; sample: number }): NoiseKey => ({
    seed,
    iteration,
    timestep,
    purpose,
    ...which,
  });
  const shared = options.noiseSharedAcrossPrompts ? 0 : own;
  return {
    initial: key(NOISE.initial, 0, { prompt: shared, sample: options.sameNoise ? 0 : index }),
    stepNoise: (step) => key(NOISE.step, step, { prompt: own, sample: index }),
  };
}

/** Samples of an iteration with everything on the device that belongs to them. */
export class Rollout implements Disposable {
  readonly samples: Sample[];
  readonly #owned: Set<Disposable>;

  constructor(samples: Sample[], owned: Set<Disposable>) {
    this.samples = samples;
    this.#owned = owned;
  }

  /** The pictures of each batch, with the samples that they show, in order. */
  *imageBatches(): Generator<{ images: NativeTensor; samples: Sample[] }> {
    for (const images of new Set(this.samples.map((sample) => sample.images))) {
      yield { images, samples: this.samples.filter((sample) => sample.images === images) };
    }
  }

  [Symbol.dispose](): void {
    for (const thing of this.#owned) thing[Symbol.dispose]();
  }
}

/** Told a batch's steps and its decoding. */
export interface RolloutWatcher extends SampleWatcher {
  decoding(): Promise<void>;
  decoded(latents: NativeTensor, images: NativeTensor): Promise<void>;
}

/** Tells a recorder, step by step, of a batch: its number, and the places of its pictures. */
export function watcher(recorder: StageRecorder, batch: number, places: readonly number[]): RolloutWatcher {
  return {
    async before(step: number, latents: NativeTensor) {
      await recorder.stage(`rollout/s${step}`, batch);
      await recorder.tensor("latents", "input", latents, places);
    },
    async after(_step: number, { latents, logProbs }: SampleStepResult) {
      await recorder.tensor("next", "output", latents, places);
      const values = logProbs ? await runJob(logProbs.download()) : [];
      for (const [i, value] of values.entries()) recorder.numbers(`logProb.${places[i]}`, [value]);
    },
    decoding: () => recorder.stage("decode", batch),
    async decoded(latents: NativeTensor, images: NativeTensor) {
      await recorder.tensor("latents", "input", latents, places);
      await recorder.tensor("images", "output", images, places);
      await recorder.pictures(images, places);
    },
  };
}

/** What the stages of a rollout took. */
export interface RolloutSeconds {
  rollout: number;
  decode: number;
}

/**
 * Samples pictures in the order given, each of prompt number `group`. What a picture looks like depends neither on `batch` nor on what else
 * is asked for.
 */
export async function rollout(
  pipeline: Pipeline,
  plan: SamplePlan,
  prompts: ReadonlyMap<number, IterationPrompt>,
  pictures: readonly DealtPicture[],
  options: RolloutOptions,
): Promise<{ rollout: Rollout; seconds: RolloutSeconds }> {
  const seconds: RolloutSeconds = { rollout: 0, decode: 0 };
  const wanted = pictures.map((picture) => ({ ...prompts.get(picture.group)!, ...picture }));
  const samples: Sample[] = [];
  const owned = new Set<Disposable>();
  try {
    for (const batch of batches(wanted, options.batch)) {
      const rows = batch.map((sample) => ({
        embedding: sample.embedding,
        ...noiseKeys(options, sample.prompt, sample.index),
      }));
      const started = performance.now();
      const watch =
        options.recorder &&
        watcher(
          options.recorder,
          Math.floor(samples.length / options.batch),
          batch.map(({ place }) => place),
        );
      const trajectory = await sampleBatch(pipeline, plan, rows, {
        keep: true,
        signal: options.signal,
        ...(watch ? { watch } : {}),
      });
      owned.add(trajectory);
      const sampled = performance.now();
      await watch?.decoding();
      const images = await pipeline.decode(
        trajectory.final,
        plan.grid.rows,
        plan.grid.columns,
        options.signal,
      );
      owned.add(images);
      await watch?.decoded(trajectory.final, images);
      seconds.rollout += (sampled - started) / 1000;
      seconds.decode += (performance.now() - sampled) / 1000;
      for (const [row, sample] of batch.entries()) samples.push({ ...sample, trajectory, row, images });
      options.onBatch?.(samples.length, wanted.length);
    }
    return { rollout: new Rollout(samples, owned), seconds };
  } catch (error) {
    for (const thing of owned) thing[Symbol.dispose]();
    throw error;
  }
}
