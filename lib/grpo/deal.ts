/**
 * Which pictures of an iteration each rank makes and learns from.
 *
 * Pictures are numbered prompt by prompt. An update takes the next `accumulate` of them, and each rank the next equal piece of those: so an
 * update is made of the same pictures at any number of ranks. Where such a piece would cut the group of a prompt and groups must stay
 * whole, every rank takes an equal run of prompts instead, and an update an equal piece of each rank's pictures.
 */
import { DanceError } from "../errors.js";
import type { TrainConfig } from "./config.js";

/** What decides who gets which pictures. */
export type DealConfig = Pick<TrainConfig, "promptsPerIteration" | "groupSize" | "distributed"> & {
  learning: Pick<TrainConfig["learning"], "accumulate">;
};

/** One picture: which prompt of the iteration, which of its group, and its number among all of the iteration. */
export interface DealtPicture {
  group: number;
  index: number;
  place: number;
}

export interface Share {
  /** In the order in which they are learned from. */
  pictures: DealtPicture[];
  /** How many of them an update takes. */
  perUpdate: number;
}

/** Who this is among the ranks. */
export interface Seat {
  rank: number;
  size: number;
}

const refuse = (option: string, expected: string, got: number, hint: string): never => {
  throw new DanceError("ERR_OPTION", `config: ${option}: expected ${expected}, got ${got}`, { hint });
};

/** Are updates made of the same pictures at any number of ranks? */
function sameUpdates({ groupSize, learning, distributed }: DealConfig, size: number): boolean {
  const piece = learning.accumulate / size;
  return size === 1 || distributed.groupSpansRanks || piece % groupSize === 0;
}

/** @throws {DanceError} `ERR_OPTION` naming the option that does not fit `size` ranks. */
export function checkDeal(config: DealConfig, size: number): void {
  const { promptsPerIteration, groupSize, learning, distributed } = config;
  const { accumulate } = learning;
  if (!distributed.groupSpansRanks && promptsPerIteration % size !== 0) {
    const hint = "or let distributed.groupSpansRanks deal the pictures of one prompt over ranks";
    refuse("promptsPerIteration", `a multiple of the ${size} ranks`, promptsPerIteration, hint);
  }
  if (accumulate % size !== 0) {
    const hint = "it counts the pictures of all ranks";
    refuse("learning.accumulate", `a multiple of the ${size} ranks`, accumulate, hint);
  }
  if (distributed.collective === "ordered" && !sameUpdates(config, size)) {
    const hint =
      "or distributed.groupSpansRanks: true; otherwise updates would change with the number of ranks";
    const expected = `a multiple of groupSize times ranks, ${groupSize * size}, for ordered sums`;
    refuse("learning.accumulate", expected, accumulate, hint);
  }
}

/** @throws {DanceError} as {@link checkDeal}. */
export function shareOf(config: DealConfig, { rank, size }: Seat): Share {
  checkDeal(config, size);
  const { groupSize, learning } = config;
  const all = config.promptsPerIteration * groupSize;
  const perUpdate = learning.accumulate / size;
  const placeOf = sameUpdates(config, size)
    ? (i: number) => Math.floor(i / perUpdate) * learning.accumulate + rank * perUpdate + (i % perUpdate)
    : (i: number) => rank * (all / size) + i;
  const pictures = Array.from({ length: all / size }, (_, i) => {
    const place = placeOf(i);
    return { group: Math.floor(place / groupSize), index: place % groupSize, place };
  });
  return { pictures, perUpdate };
}
