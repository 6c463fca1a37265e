/** The seed of what names none: one place, so that one switch can set it (`seedAll` of danceflux/align). */

let chosen: number | undefined;

/** Sets the seed of training and sampling that name none; undefined: their own defaults. Answers what it was. */
export function setDefaultSeed(seed: number | undefined): number | undefined {
  const before = chosen;
  chosen = seed;
  return before;
}

/** DanceGRPO's 42, unless one was set. */
export const trainingSeed = (): number => chosen ?? 42;

/** 0, unless one was set. */
export const samplingSeed = (): number => chosen ?? 0;
