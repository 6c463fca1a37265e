/** Configuration files: JSON as lib/grpo/config.ts describes it, paths relative to the file. */
import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { DanceError } from "./errors.js";
import type { PartialConfig, RewardConfig, TrainConfig } from "./grpo/config.js";
import { completeConfig } from "./grpo/validate.js";
import { checkRewards, isAddress } from "./rewards/index.js";

type Tree = Record<string, unknown>;

const isTree = (value: unknown): value is Tree =>
  value !== null && typeof value === "object" && !Array.isArray(value);

/** One `name=value` that changes a configuration: dotted name; the value is JSON, or a text when it is none. */
export interface ConfigChange {
  name: string;
  value: unknown;
}

/** @throws {DanceError} `ERR_OPTION` when it is not `name=value`. */
export function parseChange(text: string): ConfigChange {
  const [, name, value] = /^([\w-]+(?:\.[\w-]+)*)=(.*)$/s.exec(text) ?? [];
  if (name === undefined || value === undefined) {
    throw new DanceError(
      "ERR_OPTION",
      `--set: expected NAME=VALUE such as learning.learningRate=1e-5, got ${text}`,
    );
  }
  try {
    return { name, value: JSON.parse(value) };
  } catch {
    return { name, value };
  }
}

/** Sets a dotted name; numbers are places in lists that are there already. */
function applyChange(config: Tree, { name, value }: ConfigChange): void {
  const keys = name.split(".");
  let place: Tree = config;
  for (const key of keys.slice(0, -1)) {
    const inside = Object.hasOwn(place, key) ? place[key] : undefined;
    if (inside !== null && typeof inside === "object") {
      place = inside as Tree;
      continue;
    }
    if (inside !== undefined || Array.isArray(place)) {
      throw new DanceError("ERR_OPTION", `--set: ${name}: expected ${key} to hold options, got none`);
    }
    const made: Tree = {};
    Object.defineProperty(place, key, { value: made, enumerable: true, writable: true, configurable: true });
    place = made;
  }
  const last = keys.at(-1)!;
  if (Array.isArray(place) && !Object.hasOwn(place, last)) {
    throw new DanceError(
      "ERR_OPTION",
      `--set: ${name}: expected a place from 0 to ${place.length - 1}, got ${last}`,
    );
  }
  Object.defineProperty(place, last, { value, enumerable: true, writable: true, configurable: true });
}

/** Options that are paths when they are texts. */
const PATHS: readonly (readonly string[])[] = [
  ["model", "path"],
  ["prompts"],
  ["embeddingCache"],
  ["evaluation", "prompts"],
  ["output", "folder"],
];

function resolveReward(reward: RewardConfig, folder: string): RewardConfig {
  if (!isTree(reward)) return reward; // told by the check
  const resolved: RewardConfig = { ...reward };
  for (const key of isAddress(String(reward.type)) ? ["tokenizer"] : ["path", "tokenizer"]) {
    if (typeof reward[key] === "string") resolved[key] = resolve(folder, reward[key]);
  }
  return resolved;
}

/** Every relative path of a configuration made absolute. */
function resolvePaths<T extends object>(config: T, folder: string): T {
  const resolved = structuredClone(config) as Tree;
  for (const keys of PATHS) {
    const owner = keys
      .slice(0, -1)
      .reduce<unknown>((place, key) => (isTree(place) ? place[key] : undefined), resolved);
    const key = keys.at(-1)!;
    if (isTree(owner) && typeof owner[key] === "string") owner[key] = resolve(folder, owner[key]);
  }
  const lists = [resolved, resolved.evaluation].filter(
    (owner) => isTree(owner) && Array.isArray(owner.rewards),
  ) as Tree[];
  for (const owner of lists) {
    owner.rewards = (owner.rewards as RewardConfig[]).map((reward) => resolveReward(reward, folder));
  }
  return resolved as T;
}

/** Paths among changes are relative to where the user is, not to the file. */
function resolveChange(change: ConfigChange): ConfigChange {
  const { name, value } = change;
  const isRewardPath =
    /^(evaluation\.)?rewards\.\d+\.(path|tokenizer)$/.test(name) && !/^https?:/.test(String(value));
  const isPath = isRewardPath || PATHS.some((keys) => keys.join(".") === name);
  return isPath && typeof value === "string" ? { name, value: resolve(value) } : change;
}

/** A JSON object from a file. @throws {DanceError} `ERR_FILE`, `ERR_OPTION` */
export async function readTree(path: string): Promise<Tree> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    throw new DanceError("ERR_FILE", `${path}: cannot be read (${(cause as Error).message})`, { cause });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new DanceError("ERR_OPTION", `${path}: expected JSON (${(cause as Error).message})`, { cause });
  }
  if (!isTree(value)) throw new DanceError("ERR_OPTION", `${path}: expected a JSON object`);
  return value;
}

/**
 * Reads a configuration: defaults, then its preset, then what it says, then `changes` (`learning.learningRate=1e-5`). Relative paths are
 * relative to the file; those among the changes to the current folder.
 *
 * @throws {DanceError} `ERR_FILE` when it cannot be read; `ERR_OPTION` naming the option, what it got and what it may be.
 */
export async function loadConfig(path: string, changes: readonly string[] = []): Promise<TrainConfig> {
  return configFromTree(await readTree(path), dirname(resolve(path)), changes);
}

/** The same for a configuration that was read already, from a file in `folder`. */
export function configFromTree(tree: Tree, folder: string, changes: readonly string[] = []): TrainConfig {
  for (const text of changes) applyChange(tree, resolveChange(parseChange(text)));
  const config = resolvePaths(completeConfig(tree as PartialConfig), folder);
  checkRewards("config: rewards", config.rewards);
  if (config.evaluation.rewards) checkRewards("config: evaluation.rewards", config.evaluation.rewards);
  return config;
}
