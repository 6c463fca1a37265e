/** What the transformer's passes cost. */
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
