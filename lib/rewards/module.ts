/**
 * A JavaScript file as a reward. Its default export is either
 *
 * - a function `(pictures, prompts, context) => number[]` (or a promise of them), or
 * - an object with `create(options)`, which answers such a function or a whole reward with `score(request)`. It gets the reward's own options
 *   from the configuration, so that one file can serve several rewards.
 *
 * The file runs with all rights of this process: name only files that you would run.
 */
import { stat } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import { DanceError } from "../errors.js";
import { describe } from "../models/fields.js";
import { functionReward, type ScoreFunction, unlessAborted } from "./function.js";
import { COMMON_OPTIONS } from "./options.js";
import type { Reward, RewardConfig } from "./types.js";

interface RewardFactory {
  create(options: Record<string, unknown>): unknown;
}

const isFactory = (value: unknown): value is RewardFactory =>
  value !== null && typeof value === "object" && typeof (value as RewardFactory).create === "function";

const isReward = (value: unknown): value is Pick<Reward, "score"> & Partial<Reward> =>
  value !== null && typeof value === "object" && typeof (value as Reward).score === "function";

function refuse(path: string, expected: string, got: unknown): never {
  throw new DanceError("ERR_REWARD_MODULE", `${path}: expected ${expected}, got ${describe(got)}`);
}

async function importDefault(path: string): Promise<unknown> {
  // import() alone would say "Cannot find module ... imported from ..." with our own path in it.
  await stat(path).catch((cause) => {
    throw new DanceError("ERR_REWARD_MODULE", `${path}: cannot be read (${cause.message})`, { cause });
  });
  try {
    return ((await import(pathToFileURL(path).href)) as { default?: unknown }).default;
  } catch (cause) {
    throw new DanceError("ERR_REWARD_MODULE", `${path}: it does not load: ${(cause as Error).message}`, {
      cause,
    });
  }
}

/** A reward that may lack what only we need: its name is the configured one, and it need not know how to be disposed. */
function completed(name: string, reward: Pick<Reward, "score"> & Partial<Reward>): Reward {
  const dispose = (): void => reward.dispose?.();
  const score: Reward["score"] = (request) => unlessAborted(reward.score(request), request.signal);
  return { name, score, dispose, [Symbol.dispose]: dispose };
}

/** @throws {DanceError} `ERR_REWARD_MODULE` when the file does not load or exports something else. */
export async function moduleReward(name: string, path: string, config: RewardConfig): Promise<Reward> {
  const exported = await importDefault(path);
  if (typeof exported === "function") return functionReward(name, exported as ScoreFunction);
  if (!isFactory(exported)) {
    refuse(path, "a default export that is a function or has create(options)", exported);
  }
  const own = Object.fromEntries(Object.entries(config).filter(([key]) => !COMMON_OPTIONS.includes(key)));
  let made: unknown;
  try {
    made = await exported.create(own);
  } catch (cause) {
    throw new DanceError("ERR_REWARD_MODULE", `${path}: create: ${(cause as Error).message}`, { cause });
  }
  if (typeof made === "function") return functionReward(name, made as ScoreFunction);
  return isReward(made)
    ? completed(name, made)
    : refuse(path, "create() to answer a function or a reward", made);
}
