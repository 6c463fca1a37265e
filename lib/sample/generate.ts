/** Pictures for prompts, outside of training. */
import { toPictures } from "../image/from_device.js";
import type { Picture } from "../image/index.js";
import type { Pipeline, PromptEmbedding } from "../models/types.js";
import type { StepKind } from "../native.js";
import { samplingSeed } from "../seed.js";
import { batches, evaluationKey, sampleBatch, samplePlan } from "./sampler.js";

export interface GenerateOptions {
  prompts: string[];
  /** Pictures per prompt; default 1. */
  picturesPerPrompt?: number;
  /** Pixels; multiples of 16 for FLUX. */
  width: number;
  height: number;
  /** Default 28. */
  steps?: number;
  /** Default 3.5; ignored by models without it. */
  guidance?: number;
  /** Default: what the model's scheduler says. */
  shift?: number | "dynamic";
  /** Default `ode`: no noise after the first. */
  kind?: StepKind;
  /** Amount of noise per step, for the other kinds; default 0.3. */
  eta?: number;
  /** Default 0, or what `seedAll` said. The same seed gives the same pictures on every device, in any batch. */
  seed?: number;
  /** Pictures in one forward pass; default 1. */
  batch?: number;
  /** Timesteps are truncated to whole numbers before the network sees them, as in training. Default false. */
  integerTimesteps?: boolean;
  /** Timesteps and guidance reach the network rounded to bf16, as `compat.bf16Timesteps` has it in training. Default false. */
  bf16Timesteps?: boolean;
  signal?: AbortSignal;
}

export interface GeneratedPicture {
  prompt: string;
  /** Which picture of the prompt, from 0. */
  sample: number;
  picture: Picture;
}

async function embed(
  pipeline: Pipeline,
  prompts: string[],
  signal?: AbortSignal,
): Promise<Map<string, PromptEmbedding>> {
  const distinct = [...new Set(prompts)];
  const embeddings = await pipeline.encodePrompts(distinct, signal);
  return new Map(distinct.map((prompt, i) => [prompt, embeddings[i]!]));
}

/**
 * Samples pictures, prompt by prompt, as they become ready. The pipeline's text encoders must not have been freed.
 *
 * @throws {DanceError} `ERR_OPTION` for sizes that the model cannot draw.
 */
export async function* generate(
  pipeline: Pipeline,
  options: GenerateOptions,
): AsyncGenerator<GeneratedPicture> {
  const {
    prompts,
    width,
    height,
    picturesPerPrompt = 1,
    steps = 28,
    guidance = 3.5,
    kind = "ode",
    signal,
  } = options;
  const { scheduler } = pipeline;
  const shift = options.shift ?? (scheduler.useDynamicShifting ? "dynamic" : scheduler.shift);
  const { eta = 0.3, seed = samplingSeed(), batch = 1 } = options;
  const { integerTimesteps = false, bf16Timesteps = false } = options;
  const plan = samplePlan(pipeline, {
    width,
    height,
    steps,
    shift,
    kind,
    eta,
    guidance,
    integerTimesteps,
    bf16Timesteps,
  });
  const key = BigInt(seed);
  const wanted = prompts.flatMap((prompt) =>
    Array.from({ length: picturesPerPrompt }, (_, sample) => ({ prompt, sample })),
  );
  const embeddings = await embed(pipeline, prompts, signal);
  try {
    for (const part of batches(wanted, batch)) {
      const rows = part.map(({ prompt, sample }) => ({
        embedding: embeddings.get(prompt)!,
        initial: evaluationKey(key, prompt, sample, 0),
        stepNoise: (step: number) => evaluationKey(key, prompt, sample, step + 1),
      }));
      using trajectory = await sampleBatch(pipeline, plan, rows, {
        keep: false,
        ...(signal ? { signal } : {}),
      });
      using images = await pipeline.decode(trajectory.final, plan.grid.rows, plan.grid.columns, signal);
      const pictures = await toPictures(pipeline.device.handle, images, signal);
      for (const [i, entry] of part.entries()) yield { ...entry, picture: pictures[i]! };
    }
  } finally {
    for (const embedding of embeddings.values()) embedding[Symbol.dispose]();
  }
}
