/** What the transformer's passes cost, and how many blocks must be recomputed so that activations fit. */
import type { FluxConfig } from "../models/types.js";

/**
 * Floating-point operations of one forward pass of one picture: every token sees 24 D^2 per block (twelve D x D products, double and single
 * blocks alike), attention 4 S^2 D; modulation and embedders are left out (below 1 %).
 */
export function forwardFlops(config: FluxConfig, imageTokens: number, textTokens: number): number {
  const width = config.attentionHeadDim * config.numAttentionHeads;
  const tokens = imageTokens + textTokens;
  const blocks = config.numLayers + config.numSingleLayers;
  return blocks * (24 * width ** 2 * tokens + 4 * tokens ** 2 * width);
}

// f32 numbers per token and width that a block saves for backward, counted over its ops: norms, q, k, v before and after rotation,
// attention's output, the MLP before and after its activation, projections.
const SAVED_PER_TOKEN = 26;
// A rerun block keeps its input.
const SAVED_WHEN_RECOMPUTED = 1;
const BYTES = 4;
/** Share of the free memory that activations may take. */
const SHARE = 0.6;

/** How many blocks to recompute for `rows` pictures in one pass, given the free bytes: as few as fit. */
export function blocksToRecompute(
  config: FluxConfig,
  tokens: number,
  rows: number,
  freeBytes: number,
): number {
  const width = config.attentionHeadDim * config.numAttentionHeads;
  const blocks = config.numLayers + config.numSingleLayers;
  const unit = rows * tokens * width * BYTES;
  for (let recomputed = 0; recomputed < blocks; recomputed++) {
    const saved =
      (blocks - recomputed) * SAVED_PER_TOKEN + recomputed * SAVED_WHEN_RECOMPUTED + SAVED_PER_TOKEN;
    if (saved * unit <= freeBytes * SHARE) return recomputed;
  }
  return blocks;
}
