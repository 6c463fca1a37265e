/** Where the noisy steps lie (MixGRPO: Li et al. 2025): a window that moves from noise to picture as training goes on. */
import { native } from "../native.js";
import { NOISE } from "../sample/sampler.js";
import type { WindowConfig } from "./config.js";

// MixGRPO moves its window every 25 iterations.
const INTERVAL = 25;

/**
 * The window of an iteration (counted from 0) among `steps` steps. The last step never takes part: its transition is not learned from.
 * `progressive` starts at the noisiest step, moves `stride` every `interval` iterations and starts again past the end.
 */
export function windowAt(
  config: WindowConfig,
  steps: number,
  iteration: number,
  seed: bigint,
): { first: number; size: number } {
  const { size, strategy, stride = 1, interval = INTERVAL } = config;
  const positions = steps - size;
  const turn = Math.floor(iteration / interval);
  if (strategy === "fixed") return { first: 0, size };
  if (strategy === "progressive") return { first: (turn % Math.ceil(positions / stride)) * stride, size };
  const key = { seed, iteration: turn, prompt: 0, sample: 0, timestep: 0, purpose: NOISE.window };
  const draw = native().keyedNormal(key, 1);
  // The low bits of a normal draw are uniform enough to pick one of a few positions.
  const bits = new Uint32Array(draw.buffer)[0]! & 0x3fffff;
  return { first: Math.floor((bits / 0x400000) * positions), size };
}
