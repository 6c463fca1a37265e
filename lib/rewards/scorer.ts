/** Scoring a batch with a weighted mixture of rewards. */
import { DanceError } from "../errors.js";
import { toPictures } from "../image/from_device.js";
import type { NativeDevice, NativeTensor } from "../native.js";
import type { Picture, Reward, ScoreRequest } from "./types.js";

/** A reward and how much it counts. */
export interface WeightedReward {
  reward: Reward;
  weight: number;
  /** `false`: see `RewardConfig.required`. Default true. */
  required?: boolean;
}

/** Scores of one reward, one per picture. */
export interface RewardScores {
  name: string;
  weight: number;
  /** NaN for a picture that a reward which is not required could not score. */
  scores: number[];
  /** Why, in words, once per batch that failed. */
  failures: string[];
}

/** A request whose host pictures are made once, on first use. */
export function scoreRequest(
  device: NativeDevice,
  images: NativeTensor,
  prompts: string[],
  iteration: number,
  signal?: AbortSignal,
): ScoreRequest {
  let pictures: Promise<Picture[]> | undefined;
  return {
    prompts,
    images,
    iteration,
    signal,
    pictures: () => {
      pictures ??= toPictures(device, images, signal);
      return pictures;
    },
  };
}

async function checkedScores(reward: Reward, request: ScoreRequest): Promise<number[]> {
  let answer: ArrayLike<number>;
  try {
    answer = await reward.score(request);
  } catch (cause) {
    if (request.signal?.aborted) throw cause;
    const { message, hint } = cause as { message?: string; hint?: string };
    throw new DanceError("ERR_REWARD", `${reward.name}: it failed: ${message ?? cause}`, { cause, hint });
  }
  const wanted = request.prompts.length;
  if (answer?.length !== wanted) {
    throw new DanceError(
      "ERR_REWARD",
      `${reward.name}: expected ${wanted} scores, got ${answer?.length ?? "none"}`,
    );
  }
  const scores = Array.from(answer, Number);
  const bad = scores.findIndex((score) => !Number.isFinite(score));
  if (bad >= 0) {
    throw new DanceError(
      "ERR_REWARD",
      `${reward.name}: expected finite scores, got ${scores[bad]} for picture ${bad}`,
    );
  }
  return scores;
}

/**
 * One reward's scores, checked.
 *
 * @throws {DanceError} `ERR_REWARD` with the reward's name when a required one throws, or answers nonsense.
 */
export async function scoreWith(weighted: WeightedReward, request: ScoreRequest): Promise<RewardScores> {
  const { reward, weight, required = true } = weighted;
  const { name } = reward;
  try {
    return { name, weight, scores: await checkedScores(reward, request), failures: [] };
  } catch (error) {
    if (required || request.signal?.aborted) throw error;
    const missing = request.prompts.map(() => Number.NaN);
    return { name, weight, scores: missing, failures: [(error as Error).message] };
  }
}

/** All rewards of a mixture, one after the other (they share the device). */
export async function scoreAll(rewards: WeightedReward[], request: ScoreRequest): Promise<RewardScores[]> {
  const all: RewardScores[] = [];
  for (const reward of rewards) all.push(await scoreWith(reward, request));
  return all;
}

/** Scores of later batches appended to those of earlier ones, reward by reward. */
export function appendScores(all: RewardScores[], more: RewardScores[]): RewardScores[] {
  if (all.length === 0) return more;
  return all.map((entry, i) => ({
    ...entry,
    scores: [...entry.scores, ...more[i]!.scores],
    failures: [...entry.failures, ...more[i]!.failures],
  }));
}

const meanOf = (values: number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);

/**
 * Scores that are missing become the mean of those that their group has, or 0 when it has none: what says nothing about a
 * picture must neither raise nor lower it among its like.
 *
 * @param groups for each picture, which group (prompt) it belongs to.
 */
export function fillMissing(all: RewardScores[], groups: readonly number[]): RewardScores[] {
  return all.map((entry) => {
    if (entry.failures.length === 0) return entry;
    const present = (group: number) =>
      entry.scores.filter((score, i) => groups[i] === group && !Number.isNaN(score));
    const scores = entry.scores.map((score, i) =>
      Number.isNaN(score) ? meanOf(present(groups[i]!)) : score,
    );
    return { ...entry, scores };
  });
}

/** How many scores are missing. */
export const missingScores = (all: RewardScores[]): number =>
  all.reduce((count, { scores }) => count + scores.filter(Number.isNaN).length, 0);

/** sum of weight * score, per picture. */
export function mixture(all: RewardScores[]): number[] {
  const pictures = all[0]?.scores ?? [];
  return pictures.map((_, i) => all.reduce((sum, { weight, scores }) => sum + weight * scores[i]!, 0));
}
