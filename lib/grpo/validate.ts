/**
 * Checking a configuration before anything is loaded. One table says what each option may be; an error names the option, what it got and
 * what it may be, and for an unknown one the nearest that is known.
 */
import { createHash } from "node:crypto";
import { DanceError } from "../errors.js";
import { nearest } from "../nearest.js";
import { defaults, type PartialConfig, type TrainConfig } from "./config.js";
import { preset } from "./presets.js";

/** Undefined: fine. Otherwise what was expected. */
type Check = (value: unknown) => string | undefined;

const check =
  (expected: string, holds: (value: unknown) => boolean): Check =>
  (value) =>
    holds(value) ? undefined : expected;

const isNumber = (value: unknown): value is number => typeof value === "number" && Number.isFinite(value);
const count = (least: number): Check =>
  check(
    `a whole number of ${least} or more`,
    (value) => Number.isSafeInteger(value) && (value as number) >= least,
  );
const between = (low: number, high: number): Check =>
  check(`a number from ${low} to ${high}`, (value) => isNumber(value) && value >= low && value <= high);
const atLeast = (low: number): Check =>
  check(`a number of ${low} or more`, (value) => isNumber(value) && value >= low);
const above = (low: number): Check =>
  check(`a number above ${low}`, (value) => isNumber(value) && value > low);
const oneOf = (...allowed: unknown[]): Check =>
  check(`one of ${allowed.map((entry) => JSON.stringify(entry)).join(", ")}`, (value) =>
    allowed.includes(value),
  );
const text: Check = check("a text that is not empty", (value) => typeof value === "string" && value !== "");
const flag: Check = check("true or false", (value) => typeof value === "boolean");
const texts: Check = check(
  "a list of texts",
  (value) => Array.isArray(value) && value.every((entry) => typeof entry === "string"),
);
const textOrTexts: Check = (value) =>
  typeof value === "string" ? undefined : texts(value) && "a file or a list of prompts";
const either =
  (...checks: Check[]): Check =>
  (value) => {
    const expected = checks.map((entry) => entry(value));
    return expected.includes(undefined) ? undefined : expected.join(", or ");
  };
const anything: Check = () => undefined;
const regexps: Check = check("a list of regular expressions", (value) => {
  if (texts(value)) return false;
  return (value as string[]).every((entry) => {
    try {
      return new RegExp(entry) !== undefined;
    } catch {
      return false;
    }
  });
});

/** Every option by its dotted name. `device.*` beyond the name and rewards are checked by those who read them. */
const CHECKS: Readonly<Record<string, Check>> = {
  preset: text,
  "model.path": text,
  "model.dtype": oneOf("f32", "bf16", "f16"),
  "device.name": text,
  prompts: textOrTexts,
  promptsPerIteration: count(1),
  groupSize: count(2),
  iterations: count(1),
  seed: count(0),
  embeddingCache: text,
  "sampling.width": count(16),
  "sampling.height": count(16),
  "sampling.steps": count(2),
  "sampling.shift": either(above(0), oneOf("dynamic")),
  "sampling.guidance": atLeast(0),
  "sampling.kind": oneOf("dance-sde", "flow-sde", "cps"),
  "sampling.eta": above(0),
  "sampling.window.size": count(1),
  "sampling.window.stride": count(1),
  "sampling.window.interval": count(1),
  "sampling.window.strategy": oneOf("fixed", "progressive", "random"),
  "sampling.batch": count(1),
  "sampling.sameNoise": flag,
  "learning.learningRate": atLeast(0),
  "learning.schedule": oneOf("constant", "linear"),
  "learning.warmup": count(0),
  "learning.adam.beta1": between(0, 0.9999999),
  "learning.adam.beta2": between(0, 0.9999999),
  "learning.adam.eps": above(0),
  "learning.adam.weightDecay": atLeast(0),
  "learning.clipNorm": atLeast(0),
  "learning.clipRange": above(0),
  "learning.clipAdvantage": above(0),
  "learning.advantage": oneOf("group", "batch"),
  "learning.mixture": oneOf("sum", "per-reward"),
  "learning.timestepFraction": between(0, 1),
  "learning.accumulate": count(1),
  "learning.microbatch": count(1),
  "learning.recompute": either(oneOf("none", "all", "auto"), count(0)),
  "learning.emaDecay": between(0, 0.9999999),
  "learning.lora.rank": count(1),
  "learning.lora.alpha": above(0),
  "learning.lora.targets": texts,
  "learning.trainable": regexps,
  rewards: check("a list of at least one reward", (value) => Array.isArray(value) && value.length > 0),
  "evaluation.every": count(0),
  "evaluation.prompts": textOrTexts,
  "evaluation.picturesPerPrompt": count(1),
  "evaluation.rewards": check("a list of rewards", Array.isArray),
  "evaluation.steps": count(1),
  "evaluation.kind": oneOf("ode", "dance-sde", "flow-sde", "cps"),
  "evaluation.batch": count(1),
  "evaluation.save": count(0),
  "output.folder": text,
  "output.checkpointEvery": count(0),
  "output.keep": count(1),
  "output.picturesEvery": count(0),
  "output.saveInBackground": flag,
  "output.pictureCheck": flag,
  "distributed.sharding": oneOf("none", "optimizer", "optimizer+gradients"),
  "distributed.collective": oneOf("fast", "ordered"),
  "distributed.bucketMiB": check(
    "a number above 0 and at most 4096",
    (value) => isNumber(value) && value > 0 && value <= 4096,
  ),
  "distributed.groupSpansRanks": flag,
  "distributed.overlap": flag,
  "compat.bf16Timesteps": flag,
  "compat.integerTimesteps": flag,
  "compat.sameOrderEveryEpoch": flag,
  "compat.noiseSharedAcrossPrompts": flag,
};

/** Options whose inside is somebody else's to check. */
const OPEN = (name: string) => name.startsWith("device.") && name !== "device.name";

const isObject = (value: unknown): value is Record<string, unknown> =>
  value !== null && typeof value === "object" && !Array.isArray(value);

function* leaves(value: Record<string, unknown>, prefix = ""): Generator<[string, unknown]> {
  for (const [key, entry] of Object.entries(value)) {
    if (entry === undefined) continue;
    const name = prefix + key;
    if (isObject(entry) && !Object.hasOwn(CHECKS, name)) yield* leaves(entry, `${name}.`);
    else yield [name, entry];
  }
}

const shown = (value: unknown): string =>
  typeof value === "bigint" || typeof value === "symbol"
    ? String(value)
    : (JSON.stringify(value) ?? String(value));

function refuse(name: string, expected: string, got: unknown): never {
  throw new DanceError("ERR_OPTION", `config: ${name}: expected ${expected}, got ${shown(got)}`);
}

/** A group that is unknown is told as such: its name is what was misspelt, not what is in it. */
function unknownOption(name: string): DanceError {
  const known = Object.keys(CHECKS);
  const group = name.slice(0, Math.max(name.indexOf("."), 0));
  const groups = [
    ...new Set(known.filter((entry) => entry.includes(".")).map((entry) => entry.split(".")[0]!)),
  ];
  const isGroup = group !== "" && !groups.includes(group);
  const [told, among] = isGroup ? [group, groups] : [name, known];
  return new DanceError("ERR_OPTION", `config: ${told}: expected a known option, got none of that name`, {
    hint: `the nearest is ${nearest(told, among)}`,
  });
}

/** @throws {DanceError} `ERR_OPTION` for the first option that is unknown or cannot be what it is. */
export function checkOptions(config: PartialConfig): void {
  if (!isObject(config))
    throw new DanceError("ERR_OPTION", `config: expected an object, got ${shown(config)}`);
  for (const [name, value] of leaves(config)) {
    const known = Object.hasOwn(CHECKS, name) ? CHECKS[name] : OPEN(name) ? anything : undefined;
    if (!known) {
      if (Object.keys(CHECKS).some((entry) => entry.startsWith(`${name}.`))) refuse(name, "options", value);
      throw unknownOption(name);
    }
    const expected = known(value);
    if (expected) refuse(name, expected, value);
  }
}

function merge<T>(base: T, over: unknown): T {
  if (!isObject(base) || !isObject(over)) return (over === undefined ? base : over) as T;
  const result: Record<string, unknown> = { ...base };
  for (const [key, value] of Object.entries(over)) result[key] = merge(result[key], value);
  return result as T;
}

/** Throws unless an optional section is absent or has these fields. */
function checkWhole<T extends object>(
  section: string,
  value: T | undefined,
  fields: (keyof T & string)[],
): void {
  const missing = value && fields.find((field) => value[field] === undefined);
  if (missing) refuse(`${section}.${missing}`, "a value", undefined);
}

// What single options cannot tell.
function checkTogether(config: TrainConfig): void {
  const { sampling, learning, evaluation } = config;
  checkWhole("sampling.window", sampling.window, ["size", "strategy"]);
  checkWhole("learning.lora", learning.lora, ["rank", "alpha", "targets"]);
  const pictures = config.promptsPerIteration * config.groupSize;
  if (pictures % learning.accumulate !== 0) {
    refuse(
      "learning.accumulate",
      `a divisor of the ${pictures} pictures of an iteration`,
      learning.accumulate,
    );
  }
  if (sampling.window && sampling.window.size >= sampling.steps) {
    refuse("sampling.window.size", `less than the ${sampling.steps} steps`, sampling.window.size);
  }
  const cps = sampling.kind === "cps" || (evaluation.every > 0 && evaluation.kind === "cps");
  if (cps && sampling.eta > 1) refuse("sampling.eta", "at most 1 for cps", sampling.eta);
  if (learning.lora && learning.trainable)
    refuse("learning.trainable", "nothing beside learning.lora", learning.trainable);
  if (evaluation.every > 0 && evaluation.prompts.length === 0) {
    refuse("evaluation.prompts", "held-out prompts when evaluation.every is above 0", evaluation.prompts);
  }
}

/**
 * A complete configuration: defaults, then the preset, then what the user wrote.
 *
 * @throws {DanceError} `ERR_OPTION` naming the option.
 */
export function completeConfig(config: PartialConfig): TrainConfig {
  checkOptions(config);
  const { preset: name, ...own } = config;
  const base = name === undefined ? {} : preset(name);
  const complete = merge(merge(structuredClone(defaults) as unknown as TrainConfig, base), own);
  if (complete.model?.path === undefined) refuse("model.path", "a value", undefined);
  for (const required of ["prompts", "rewards"] as const) {
    if (complete[required] === undefined) refuse(required, "a value", undefined);
  }
  checkOptions(complete as unknown as PartialConfig);
  checkTogether(complete);
  return complete;
}

/**
 * A hash of everything that changes what a run computes. Left out is where it writes, how often it saves, and what never changes a bit:
 * batches of sampling, blocks recomputed, threads. So a run that needed too much memory can go on with less. Left out as well are the number
 * of ranks and what each keeps for itself: with ordered sums they change nothing, otherwise the last bits.
 */
export function configHash(config: TrainConfig): string {
  const { output: _output, embeddingCache: _cache, iterations: _iterations, distributed, ...rest } = config;
  const { batch: _batch, ...sampling } = config.sampling;
  const { recompute: _recompute, ...learning } = config.learning;
  const { batch: _pictures, save: _save, ...evaluation } = config.evaluation;
  const { threads: _threads, ...device } = config.device;
  // A linear schedule ends at the last iteration, so there the number of iterations matters too.
  const last = learning.schedule === "linear" ? { iterations: config.iterations } : {};
  const computing = { ...rest, ...last, ...summing(distributed), sampling, learning, evaluation, device };
  return createHash("sha256").update(canonical(computing)).digest("hex").slice(0, 16);
}

/** What differs from the defaults, which older runs had without saying so. */
function summing(
  { collective, bucketMiB, groupSpansRanks }: TrainConfig["distributed"] = defaults.distributed,
): object {
  const differing = Object.entries({ collective, bucketMiB, groupSpansRanks }).filter(
    ([key, value]) => value !== defaults.distributed[key as keyof TrainConfig["distributed"]],
  );
  return differing.length > 0 ? { distributed: Object.fromEntries(differing) } : {};
}

function canonical(value: unknown): string {
  if (!isObject(value)) return JSON.stringify(value) ?? "null";
  const keys = Object.keys(value).sort();
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}
