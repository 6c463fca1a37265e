/** From rewards to advantages. */
import { DanceError } from "../errors.js";
import { mixture, type RewardScores } from "../rewards/scorer.js";
import type { LearningConfig } from "./config.js";

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

/** Places of the pictures of each group. */
function membersOf(groups: readonly number[]): number[][] {
  const members = new Map<number, number[]>();
  groups.forEach((group, i) => {
    const list = members.get(group);
    if (list) list.push(i);
    else members.set(group, [i]);
  });
  return [...members.values()];
}

function standardizeOver(
  rewards: readonly number[],
  groups: readonly number[],
  over: "group" | "batch",
): number[] {
  const sets = over === "group" ? membersOf(groups) : [rewards.map((_, i) => i)];
  const values = new Array<number>(rewards.length).fill(0);
  for (const set of sets) {
    standardize(set.map((i) => rewards[i]!)).forEach((value, k) => {
      values[set[k]!] = value;
    });
  }
  return values;
}

const clamped = (values: number[], clamp: number) =>
  values.map((value) => Math.min(Math.max(value, -clamp), clamp));

/** Groups in which none of these lists has two different numbers. */
const constantGroups = (lists: readonly (readonly number[])[], groups: readonly number[]): number =>
  membersOf(groups).filter((set) => lists.every((list) => set.every((i) => list[i] === list[set[0]!])))
    .length;

function checkCount(rewards: readonly number[], groups: readonly number[]): void {
  if (rewards.length !== groups.length) {
    throw new DanceError(
      "ERR_REWARD",
      `advantages: expected ${groups.length} rewards, got ${rewards.length}`,
    );
  }
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
  checkCount(rewards, groups);
  return {
    values: clamped(standardizeOver(rewards, groups, over), clamp),
    zeroVarianceGroups: constantGroups([rewards], groups),
  };
}

/**
 * Advantages of pictures that several rewards scored. `sum`: those of the weighted sum. `per-reward`: sum of weight * advantage over the
 * rewards, divided by the sum of |weight|; a reward that is constant in a group says nothing there (MixGRPO: Li et al. 2025).
 */
export function mixedAdvantages(
  scores: readonly RewardScores[],
  groups: readonly number[],
  {
    advantage: over,
    mixture: how,
    clipAdvantage,
  }: Pick<LearningConfig, "advantage" | "mixture" | "clipAdvantage">,
): Advantages {
  if (how === "sum") return advantages(mixture([...scores]), groups, over, clipAdvantage);
  const counting = scores.filter(({ weight }) => weight !== 0);
  const total = counting.reduce((sum, { weight }) => sum + Math.abs(weight), 0);
  const values = groups.map(() => 0);
  for (const { scores: own, weight } of counting) {
    checkCount(own, groups);
    standardizeOver(own, groups, over).forEach((value, i) => {
      values[i]! += (weight / total) * value;
    });
  }
  const lists = counting.map((entry) => entry.scores);
  return { values: clamped(values, clipAdvantage), zeroVarianceGroups: constantGroups(lists, groups) };
}
