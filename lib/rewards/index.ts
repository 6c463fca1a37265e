/** Rewards by name: which there are, what they may be told, how they are loaded. */
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import type { WeightDType } from "../models/types.js";
import { nearest } from "../nearest.js";
import { CLIP_OPTIONS, loadClipScore, loadPickScore, PICKSCORE_OPTIONS } from "./clip.js";
import { HPS_OPTIONS, loadHps } from "./hps.js";
import { HTTP_OPTIONS, HttpReward, scorerAddress } from "./http.js";
import { moduleReward } from "./module.js";
import { COMMON_OPTIONS, checkRewardOptions, type OptionTable, option, pathFrom } from "./options.js";
import type { WeightedReward } from "./scorer.js";
import type { Reward, RewardConfig, RewardSource } from "./types.js";

export { functionReward, type ScoreContext, type ScoreFunction } from "./function.js";
export type { WeightedReward } from "./scorer.js";
export type { Picture, Reward, RewardConfig, ScoreRequest } from "./types.js";

export interface LoadRewardOptions {
  device: Device;
  /** What relative paths are relative to; default the current folder. */
  baseFolder?: string;
  /** Folders whose CLIP vocabulary will do for a scorer that brings none, such as a FLUX pipeline's. */
  vocabularies?: string[];
  signal?: AbortSignal;
}

interface RewardType {
  options: OptionTable;
  /** Used when the configuration names no path. */
  path: string | undefined;
  isAddress?: boolean;
  /** What cannot be told from single options. */
  check?(name: string, config: RewardConfig): void;
  load(source: RewardSource): Promise<Reward> | Reward;
}

const TYPES: Readonly<Record<string, RewardType>> = {
  "hps-v2.1": { options: HPS_OPTIONS, path: "HPS_v2.1_compressed.pt", load: loadHps },
  pickscore: { options: PICKSCORE_OPTIONS, path: "PickScore_v1", load: loadPickScore },
  clip: { options: CLIP_OPTIONS, path: "clip-vit-large-patch14", load: loadClipScore },
  http: {
    options: HTTP_OPTIONS,
    path: undefined,
    isAddress: true,
    check: (name, { path }) => void scorerAddress(name, path!),
    load: ({ name, path, config }) => new HttpReward(name, path, config),
  },
  module: {
    options: {},
    path: undefined,
    load: ({ name, path, config }) => moduleReward(name, path, config),
  },
};

/** Every type that `loadReward` knows. */
export const REWARD_TYPES: readonly string[] = Object.keys(TYPES);

/** Whether the path of a reward of this type is an address and no file. */
export const isAddress = (type: string): boolean => TYPES[type]?.isAddress === true;

function typeOf(where: string, type: unknown): RewardType {
  const found = typeof type === "string" && Object.hasOwn(TYPES, type) ? TYPES[type] : undefined;
  if (found) return found;
  const known = REWARD_TYPES.join(", ");
  const hint = typeof type === "string" ? { hint: `the nearest is ${nearest(type, REWARD_TYPES)}` } : {};
  throw new DanceError(
    "ERR_OPTION",
    `${where}: type: expected one of ${known}, got ${JSON.stringify(type)}`,
    hint,
  );
}

/** A module's own options are its own to check, so they are all known here. */
function optionsOf(type: RewardType, config: RewardConfig): OptionTable {
  if (type !== TYPES.module) return type.options;
  const own = Object.keys(config).filter((key) => !COMMON_OPTIONS.includes(key));
  return Object.fromEntries(own.map((key) => [key, option.anything]));
}

/** @throws {DanceError} `ERR_OPTION` that names the option, what it got and what it may be. Reads no file. */
export function checkReward(where: string, config: RewardConfig): void {
  if (config === null || typeof config !== "object" || Array.isArray(config)) {
    throw new DanceError(
      "ERR_OPTION",
      `${where}: expected an object with type, got ${JSON.stringify(config)}`,
    );
  }
  const type = typeOf(where, config.type);
  checkRewardOptions(where, config, optionsOf(type, config));
  if ((config.path ?? type.path) === undefined) {
    throw new DanceError(
      "ERR_OPTION",
      `${where}: path: expected ${type.isAddress ? "an address" : "a path"}, got none`,
    );
  }
  type.check?.(where, config);
}

/** Rewards of a configuration with different names, each of which is checked. */
export function checkRewards(where: string, configs: readonly RewardConfig[]): void {
  const names = new Set<string>();
  for (const [i, config] of configs.entries()) {
    checkReward(`${where}[${i}]`, config);
    const name = config.name ?? config.type;
    if (names.has(name)) {
      throw new DanceError(
        "ERR_OPTION",
        `${where}[${i}]: name: expected a name of its own, got ${name} twice`,
      );
    }
    names.add(name);
  }
}

/**
 * Loads a reward: `hps-v2.1`, `pickscore`, `clip`, `http`, `module`. A JavaScript function becomes one by `functionReward`.
 *
 * @param what the type alone, whose model then lies under its published name in `baseFolder`; or the reward's configuration.
 * @throws {DanceError} `ERR_OPTION` before any file is read; `ERR_FILE`, `ERR_CONFIG`, `ERR_WEIGHTS`, `ERR_TOKENIZER`, `ERR_REWARD_MODULE`
 * for what is missing or does not fit.
 */
export async function loadReward(what: string | RewardConfig, options: LoadRewardOptions): Promise<Reward> {
  const config = typeof what === "string" ? { type: what } : what;
  const name = config?.name ?? config?.type ?? "reward";
  checkReward(name, config);
  const type = typeOf(name, config.type);
  const { device, baseFolder = process.cwd(), vocabularies = [], signal } = options;
  const path = config.path ?? type.path!;
  const dtype = config.dtype as WeightDType | undefined;
  const place = type.isAddress ? path : pathFrom(baseFolder, path);
  return type.load({ name, config, path: place, device, dtype, baseFolder, vocabularies, signal });
}

/** Rewards of a run, loaded together and disposed together. */
export interface LoadedRewards extends Disposable {
  rewards: WeightedReward[];
}

/** Loads all rewards of a mixture. When one fails, those before it are given back. */
export async function loadRewards(
  configs: readonly RewardConfig[],
  options: LoadRewardOptions,
): Promise<LoadedRewards> {
  checkRewards("rewards", configs);
  const rewards: WeightedReward[] = [];
  const dispose = () => {
    for (const { reward } of rewards) reward.dispose();
  };
  try {
    for (const config of configs) {
      const reward = await loadReward(config, options);
      rewards.push({ reward, weight: config.weight ?? 1, required: config.required ?? true });
    }
    return { rewards, [Symbol.dispose]: dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}
