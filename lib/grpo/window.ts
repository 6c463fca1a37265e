/** Where the noisy steps lie (MixGRPO: Li et al. 2025): a window that moves from noise to picture as training goes on. */
import { native } from "../native.js";
import { NOISE } from "../sample/sampler.js";
import type { WindowConfig } from "./config.js";

/**
 * The window of an iteration (counted from 0) among `steps` steps. The last step never takes part: its transition is not learned from.
 * `progressive` starts at the noisiest step, moves `stride` every `interval` iterations and starts again past the end.
 */
export function windowAt(config: WindowConfig, steps: number, iteration: number, seed: bigint): { first: number; size: number } {
  const positions = steps - 1 - config.size + 1;
  const turn = Math.floor(iteration / config.interval);
  if (config.strategy === "progressive") {
    const stops = Math.ceil(positions / config.stride);
    return { first: (turn % stops) * config.stride, size: config.size };
  }
  const [draw] = native().keyedNormal(
    { seed, iteration: turn, prompt: 0, sample: 0, timestep: 0, purpose: NOISE.window },
    1,
  );
  // The bits of a normal draw's mantissa are uniform enough to pick one of a few positions.
  const bits = new Uint32Array(new Float32Array([draw!]).buffer)[0]! & 0x3fffff;
  return { first: Math.floor((bits / 0x400000) * positions), size: config.size };
}
