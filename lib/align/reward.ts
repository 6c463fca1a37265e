/** The acceptance run of rewards: the same pictures, scored on both sides. */
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import type { TrainConfig } from "../grpo/config.js";
import { loadPrompts } from "../grpo/prompts.js";
import { toDevice } from "../image/from_device.js";
import { AsyncImageWriter, type Picture, readPicture } from "../image/index.js";
import { loadRewards } from "../rewards/index.js";
import { appendScores, type RewardScores, scoreAll, scoreRequest } from "../rewards/scorer.js";
import { generate } from "../sample/generate.js";
import { batches } from "../sample/sampler.js";
import { OpenSide, type Side } from "./side.js";

/** A deviation of the reward beyond this share is too much. */
export const REWARD_LIMIT = 0.00015;

export interface RewardOptions {
  /** Pictures to score; default 1000. */
  pictures?: number;
  /** A folder of PNG files in place of drawing some; the configuration's prompts count in turn. */
  from?: string;
  seed?: number;
  onProgress?: (what: string) => void;
}

export interface RewardDeviation {
  name: string;
  /** Mean score on side B. */
  mean: number;
  /** Largest |a - b|, and that over the mean of |b|: what is held against the limit. */
  maxAbsolute: number;
  share: number;
  worst: number;
  a: number[];
  b: number[];
}

export interface RewardResult {
  pictures: number;
  rewards: RewardDeviation[];
  aligned: boolean;
  sentence: string;
}

interface Posed {
  picture: Picture;
  prompt: string;
}

async function posed(config: TrainConfig, side: Side, out: string, options: RewardOptions): Promise<Posed[]> {
  const { pictures = 1000, from, seed = config.seed } = options;
  const prompts = (await loadPrompts(config.prompts)).map(({ text }) => text);
  if (from !== undefined) {
    const files = (await readdir(from))
      .filter((name) => name.endsWith(".png"))
      .sort()
      .slice(0, pictures);
    if (files.length === 0) throw new DanceError("ERR_FILE", `${from}: expected PNG files, got none`);
    const read = await Promise.all(files.map((file) => readPicture(join(from, file))));
    return read.map((picture, i) => ({ picture, prompt: prompts[i % prompts.length]! }));
  }
  using open = await OpenSide.open(side, config);
  const folder = join(out, "pictures");
  await mkdir(folder, { recursive: true });
  const writer = new AsyncImageWriter();
  const { width, height, steps, shift, guidance, batch } = open.config.sampling;
  const wanted = Math.min(prompts.length, pictures);
  const each = Math.ceil(pictures / wanted);
  const drawn: Posed[] = [];
  const how = { width, height, steps, shift, guidance, batch, seed, picturesPerPrompt: each };
  for await (const { picture, prompt } of generate(open.pipeline, {
    ...how,
    prompts: prompts.slice(0, wanted),
  })) {
    if (drawn.length >= pictures) break;
    await writer.write(join(folder, `${String(drawn.length).padStart(4, "0")}.png`), picture);
    drawn.push({ picture, prompt });
    options.onProgress?.(`drawing ${drawn.length} of ${pictures}`);
  }
  await writer.flush();
  return drawn;
}

async function scoresOf(config: TrainConfig, side: Side, all: Posed[], onProgress?: (what: string) => void) {
  using open = await OpenSide.open(side, config);
  const { device } = open;
  using loaded = await loadRewards(
    open.config.rewards.map((reward) => (side.dtype ? { dtype: side.dtype, ...reward } : reward)),
    { device, vocabularies: [config.model.path] },
  );
  let scores: RewardScores[] = [];
  let done = 0;
  for (const part of batches(all, open.config.sampling.batch)) {
    const images = await toDevice(
      device.handle,
      part.map(({ picture }) => picture),
    );
    const prompts = part.map(({ prompt }) => prompt);
    scores = appendScores(
      scores,
      await scoreAll(loaded.rewards, scoreRequest(device.handle, images, prompts, 0)),
    );
    images.dispose();
    done += part.length;
    onProgress?.(`${side.label}: scored ${done} of ${all.length}`);
  }
  return scores;
}

function deviationOf(name: string, a: number[], b: number[]): RewardDeviation {
  const apart = a.map((value, i) => Math.abs(value - b[i]!));
  const maxAbsolute = apart.reduce((most, each) => (each <= most ? most : each), 0);
  const size = b.reduce((sum, value) => sum + Math.abs(value), 0) / b.length;
  const mean = b.reduce((sum, value) => sum + value, 0) / b.length;
  const share = maxAbsolute === 0 ? 0 : maxAbsolute / size;
  return { name, mean, maxAbsolute, share, worst: apart.indexOf(maxAbsolute), a, b };
}

const percent = (share: number): string => `${Number((100 * share).toPrecision(2))} %`;

/** Scores the same pictures on both sides; they are drawn on side B, which counts as right. */
export async function alignReward(
  config: TrainConfig,
  a: Side,
  b: Side,
  out: string,
  options: RewardOptions = {},
): Promise<RewardResult> {
  const all = await posed(config, b, out, options);
  const right = await scoresOf(config, b, all, options.onProgress);
  const left = await scoresOf(config, a, all, options.onProgress);
  const rewards = right.map(({ name, scores }, i) => deviationOf(name, left[i]!.scores, scores));
  const worst = rewards.reduce((most, each) => (each.share > most.share ? each : most));
  const aligned = rewards.every(({ share }) => share <= REWARD_LIMIT);
  const told = `the largest deviation of ${worst.name} over ${all.length} pictures is ${percent(worst.share)} of its mean, ${percent(REWARD_LIMIT)} is allowed`;
  const sentence = aligned ? `Aligned: ${told}.` : `Not aligned: ${told}; it is at picture ${worst.worst}.`;
  return { pictures: all.length, rewards, aligned, sentence };
}
