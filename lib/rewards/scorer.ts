/** Scoring a batch with a weighted mixture of rewards. */
import { DanceError } from "../errors.js";
import { type NativeDevice, type NativeTensor, runJob } from "../native.js";
import type { Picture, Reward, ScoreRequest } from "./types.js";

/** A reward and how much it counts. */
export interface WeightedReward {
  reward: Reward;
  weight: number;
}

/** Scores of one reward, one per picture. */
export interface RewardScores {
  name: string;
  weight: number;
  scores: number[];
}

/** Pictures [B, 3, h, w] about -1 to 1, as bytes on the host. */
export async function toPictures(device: NativeDevice, images: NativeTensor, signal?: AbortSignal): Promise<Picture[]> {
  const [count, , height, width] = images.shape as [number, number, number, number];
  const bytes = await runJob(device.toRgb8(images), signal);
  const size = width * height * 3;
  return Array.from({ length: count }, (_, i) => ({ width, height, data: bytes.subarray(i * size, (i + 1) * size) }));
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

/** One reward's scores, checked. @throws {DanceError} `ERR_REWARD` with the reward's name when it throws, or answers nonsense. */
export async function scoreWith({ reward, weight }: WeightedReward, request: ScoreRequest): Promise<RewardScores> {
  let answer: ArrayLike<number>;
  try {
    answer = await reward.score(request);
  } catch (cause) {
    if (request.signal?.aborted) throw cause;
    throw new DanceError("ERR_REWARD", `${reward.name}: it failed: ${(cause as Error).message}`, { cause });
  }
  const wanted = request.prompts.length;
  if (answer?.length !== wanted) {
    throw new DanceError("ERR_REWARD", `${reward.name}: expected ${wanted} scores, got ${answer?.length ?? "none"}`);
  }
  const scores = Array.from(answer, Number);
  const bad = scores.findIndex((score) => !Number.isFinite(score));
  if (bad >= 0) {
    throw new DanceError("ERR_REWARD", `${reward.name}: expected finite scores, got ${scores[bad]} for picture ${bad}`);
  }
  return { name: reward.name, weight, scores };
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
  return all.map((entry, i) => ({ ...entry, scores: [...entry.scores, ...more[i]!.scores] }));
}

/** sum of weight * score, per picture. */
export function mixture(all: RewardScores[]): number[] {
  return (all[0]?.scores ?? []).map((_, i) => all.reduce((sum, { weight, scores }) => sum + weight * scores[i]!, 0));
}
