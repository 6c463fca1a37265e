/** How good the model is on prompts that it never learns from, always at the same noise. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { AsyncImageWriter } from "../image/index.js";
import type { Pipeline, PromptEmbedding } from "../models/types.js";
import {
  appendScores,
  type RewardScores,
  scoreAll,
  scoreRequest,
  type WeightedReward,
} from "../rewards/scorer.js";
import type { Picture } from "../rewards/types.js";
import { batches, evaluationKey, type SamplePlan, sampleBatch } from "../sample/sampler.js";
import type { Seat } from "./deal.js";
import type { EmbeddingStore } from "./embeddings.js";
import { sliceOf } from "./together.js";

export interface EvaluationOptions {
  prompts: string[];
  picturesPerPrompt: number;
  batch: number;
  /** Each rank makes a run of the pictures. */
  seat: Seat;
  /** How many pictures are saved, by all ranks. */
  save: number;
  seed: bigint;
  iteration: number;
  /** Folder for the pictures and their list. */
  folder: string;
  signal?: AbortSignal;
  onBatch?: (done: number, all: number) => void;
}

/** One saved picture, as `pictures.json` lists it. */
export interface SavedPicture {
  file: string;
  prompt: string;
  scores: Record<string, number>;
}

export interface EvaluationResult {
  pictures: number;
  scores: RewardScores[];
  saved: SavedPicture[];
}

/** All pictures of an evaluation: one of every prompt before the second of any, so that those that are saved show many prompts. */
const allPictures = ({
  prompts,
  picturesPerPrompt,
}: Pick<EvaluationOptions, "prompts" | "picturesPerPrompt">) =>
  Array.from({ length: picturesPerPrompt }, (_, sample) =>
    prompts.map((prompt) => ({ prompt, sample })),
  ).flat();

/** Prompts that a rank will need. */
export function evaluationPrompts(
  options: Pick<EvaluationOptions, "prompts" | "picturesPerPrompt" | "seat">,
): string[] {
  const all = allPictures(options);
  const { first, end } = sliceOf(all.length, options.seat);
  return [...new Set(all.slice(first, end).map(({ prompt }) => prompt))];
}

/** Lists saved pictures for the report. */
export async function writePictureList(folder: string, saved: readonly SavedPicture[]): Promise<void> {
  await writeFile(join(folder, "pictures.json"), `${JSON.stringify(saved, null, 1)}\n`);
}

/** Samples and scores this rank's part of the pictures of held-out prompts. */
export async function evaluate(
  pipeline: Pipeline,
  plan: SamplePlan,
  embeddings: EmbeddingStore,
  rewards: WeightedReward[],
  options: EvaluationOptions,
): Promise<EvaluationResult> {
  const { signal } = options;
  const all = allPictures(options);
  const { first, end } = sliceOf(all.length, options.seat);
  const wanted = all.slice(first, end);
  await mkdir(options.folder, { recursive: true });
  const writer = new AsyncImageWriter();
  const saved: SavedPicture[] = [];
  let scores: RewardScores[] = [];
  let done = 0;
  for (const batch of batches(wanted, options.batch)) {
    const uploaded = new Map<string, PromptEmbedding>();
    try {
      for (const { prompt } of batch) {
        if (!uploaded.has(prompt)) uploaded.set(prompt, await embeddings.upload(prompt, signal));
      }
      const rows = batch.map(({ prompt, sample }) => ({
        embedding: uploaded.get(prompt)!,
        initial: evaluationKey(options.seed, prompt, sample, 0),
        stepNoise: (step: number) => evaluationKey(options.seed, prompt, sample, step + 1),
      }));
      using trajectory = await sampleBatch(pipeline, plan, rows, { keep: false, signal });
      using images = await pipeline.decode(trajectory.final, plan.grid.rows, plan.grid.columns, signal);
      const request = scoreRequest(
        pipeline.device.handle,
        images,
        batch.map((entry) => entry.prompt),
        options.iteration,
        signal,
      );
      const batchScores = await scoreAll(rewards, request);
      scores = appendScores(scores, batchScores);
      if (first + done < options.save) {
        const pictures = await request.pictures();
        saved.push(...(await save(writer, options, pictures, batch, batchScores, first + done)));
      }
    } finally {
      for (const embedding of uploaded.values()) embedding[Symbol.dispose]();
    }
    done += batch.length;
    options.onBatch?.(done, wanted.length);
  }
  await writer.flush();
  return { pictures: done, scores, saved };
}

async function save(
  writer: AsyncImageWriter,
  options: EvaluationOptions,
  pictures: Picture[],
  batch: { prompt: string }[],
  scores: RewardScores[],
  first: number,
): Promise<SavedPicture[]> {
  const saved: SavedPicture[] = [];
  for (const [i, picture] of pictures.slice(0, options.save - first).entries()) {
    const file = `${String(first + i).padStart(4, "0")}.png`;
    await writer.write(join(options.folder, file), picture);
    saved.push({
      file,
      prompt: batch[i]!.prompt,
      scores: Object.fromEntries(
        scores.map((entry) => [entry.name, entry.scores[i]!]).filter(([, score]) => Number.isFinite(score)),
      ),
    });
  }
  return saved;
}
