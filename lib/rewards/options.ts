/** Reading the options of one reward of a configuration. Complaints name the reward, the option, what was expected and what was there. */
import { resolve } from "node:path";
import { DanceError } from "../errors.js";
import { describe } from "../models/fields.js";
import { nearest } from "../nearest.js";
import type { RewardConfig } from "./types.js";

/** Options that every reward has. */
export const COMMON_OPTIONS: readonly string[] = ["type", "name", "weight", "required", "path"];

/** What an option must be. */
export interface OptionCheck {
  expected: string;
  holds(value: unknown): boolean;
}

/** What a reward knows besides the common options. */
export type OptionTable = Readonly<Record<string, OptionCheck>>;

const isText = (value: unknown): boolean => typeof value === "string" && value !== "";

const isObjectOfTexts = (value: unknown): boolean =>
  value !== null &&
  typeof value === "object" &&
  !Array.isArray(value) &&
  Object.values(value).every((entry) => typeof entry === "string");

/** Checks that the tables of the rewards are made of. */
export interface OptionChecks {
  text: OptionCheck;
  flag: OptionCheck;
  positive: OptionCheck;
  texts: OptionCheck;
  anything: OptionCheck;
  count(least: number): OptionCheck;
  oneOf(...allowed: unknown[]): OptionCheck;
}

export const option: OptionChecks = {
  text: { expected: "a text that is not empty", holds: isText },
  flag: { expected: "true or false", holds: (value) => typeof value === "boolean" },
  positive: {
    expected: "a number above 0",
    holds: (value) => typeof value === "number" && Number.isFinite(value) && value > 0,
  },
  texts: { expected: "an object of texts", holds: isObjectOfTexts },
  anything: { expected: "anything", holds: () => true },
  count: (least) => ({
    expected: `a whole number of ${least} or more`,
    holds: (value) => Number.isSafeInteger(value) && (value as number) >= least,
  }),
  oneOf: (...allowed) => ({
    expected: `one of ${allowed.map((entry) => JSON.stringify(entry)).join(", ")}`,
    holds: (value) => allowed.includes(value),
  }),
};

const COMMON: OptionTable = {
  type: option.text,
  name: option.text,
  weight: { expected: "a number", holds: (value) => typeof value === "number" && Number.isFinite(value) },
  required: option.flag,
  path: option.text,
};

/** @throws {DanceError} `ERR_OPTION` for the first option that is unknown, with the nearest known one, or cannot be what it is. */
export function checkRewardOptions(where: string, config: RewardConfig, own: OptionTable): void {
  const known = { ...COMMON, ...own };
  for (const [name, value] of Object.entries(config)) {
    if (value === undefined) continue;
    const check = Object.hasOwn(known, name) ? known[name] : undefined;
    if (!check) {
      throw new DanceError(
        "ERR_OPTION",
        `${where}: ${name}: expected a known option, got none of that name`,
        {
          hint: `the nearest is ${nearest(name, Object.keys(known))}`,
        },
      );
    }
    if (!check.holds(value)) {
      throw new DanceError(
        "ERR_OPTION",
        `${where}: ${name}: expected ${check.expected}, got ${describe(value)}`,
      );
    }
  }
}

/** A path of the configuration, relative to the folder that the configuration is in. */
export const pathFrom = (baseFolder: string, path: string): string => resolve(baseFolder, path);
