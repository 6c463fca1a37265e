/** From rewards to advantages. */
import { DanceError } from "../errors.js";

export interface Advantages {
  values: number[];
  /** Groups whose rewards are all equal: nothing can be learned from them, their advantages are zero. */
  zeroVarianceGroups: number;
}

// DanceGRPO adds this to the standard deviation.
const EPSILON = 1e-8;

/** (r - mean) / (std + 1e-8) with the unbiased standard deviation (n - 1); zeros for a constant group. */
export function standardize(rewards: readonly number[]): number[] {
  const first = rewards[0];
  // Compared exactly: rounding in the mean would otherwise leave noise divided by epsilon.
  if (rewards.every((reward) => reward === first)) return rewards.map(() => 0);
  const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
  const squares = rewards.reduce((sum, reward) => sum + (reward - mean) ** 2, 0);
  const deviation = Math.sqrt(squares / (rewards.length - 1));
  return rewards.map((reward) => (reward - mean) / (deviation + EPSILON));
}

/**
 * @param rewards one per picture.
 * @param groups for each picture, which group (prompt) it belongs to.
 * @param over `group`: standardized within each group; `batch`: over all.
 * @param clamp advantages are clamped to +- this.
 */
export function advantages(
  rewards: readonly number[],
  groups: readonly number[],
  over: "group" | "batch",
  clamp: number,
): Advantages {
  if (rewards.length !== groups.length) {
    throw new DanceError("ERR_REWARD", `advantages: expected ${groups.length} rewards, got ${rewards.length}`);
  }
  const members = new Map<number, number[]>();
  groups.forEach((group, i) => {
    const list = members.get(group);
    if (list) list.push(i);
    else members.set(group, [i]);
  });
  const sets = over === "group" ? [...members.values()] : [rewards.map((_, i) => i)];
  const values = new Array<number>(rewards.length).fill(0);
  for (const set of sets) {
    standardize(set.map((i) => rewards[i]!)).forEach((value, k) => {
      values[set[k]!] = Math.min(Math.max(value, -clamp), clamp);
    });
  }
  const constant = [...members.values()].filter((set) => set.every((i) => rewards[i] === rewards[set[0]!]));
  return { values, zeroVarianceGroups: constant.length };
}
