/** How many blocks an update runs again in backward instead of keeping what they computed. */
import { freemem } from "node:os";
import type { MemoryReport } from "../native.js";
import { type PassShape, trainingPassBytes } from "./activations.js";
import type { TrainConfig } from "./config.js";

/**
 * As many as `recompute` says, or, where it says "auto", as few as fit.
 *
 * @param free Bytes that a pass may take; undefined: not known, so none are recomputed.
 */
export function recomputedBlocks(
  recompute: TrainConfig["learning"]["recompute"],
  pass: PassShape,
  free: number | undefined,
): number {
  const all = pass.flux.numLayers + pass.flux.numSingleLayers;
  if (recompute === "none") return 0;
  if (recompute === "all") return all;
  if (recompute !== "auto") return recompute < 0 ? all : Math.min(recompute, all);
  if (free === undefined) return 0;
  for (let blocks = 0; blocks < all; blocks++) if (trainingPassBytes(pass, blocks) <= free) return blocks;
  return all;
}

/** Share of the host's free memory that activations may take: other programs want some too. */
const OF_HOST = 0.6;
/** Share of the device's: libraries take workspaces, and gradients may be under way. */
const OF_DEVICE = 0.9;

/**
 * Bytes that activations may take now: of the device's own memory, else a rank's part of the host's, and what the device's pool keeps for
 * later.
 */
export function freeForActivations({ free, held, used }: MemoryReport, ranksOfHost: number): number {
  const fresh = free ?? freemem() / ranksOfHost;
  return (fresh + held - used) * (free === undefined ? OF_HOST : OF_DEVICE);
}
