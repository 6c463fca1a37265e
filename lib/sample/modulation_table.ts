/** The table of modulations that a rollout makes once for all steps and prompts of a batch. */
import { doubleBlockLayers, type LinearLayer, singleBlockLayers } from "../models/flux_shapes.js";
import type { FluxConfig } from "../models/types.js";

/** A table is not made where it would be larger. */
const MOST_BYTES = 256 * 2 ** 20;

const rowsOf = ({ parts }: LinearLayer) => parts.reduce((sum, { rows }) => sum + rows, 0);

/** Numbers of a row: shifts, scales and gates of all blocks, and of the last norm. */
export function modulationWidth(config: FluxConfig): number {
  const blocks = (count: number, each: (block: number) => number) =>
    Array.from({ length: count }, (_, block) => each(block)).reduce((sum, rows) => sum + rows, 0);
  return (
    blocks(config.numLayers, (block) => {
      const { image, text } = doubleBlockLayers(config, block);
      return rowsOf(image.modulation) + rowsOf(text.modulation);
    }) +
    blocks(config.numSingleLayers, (block) => rowsOf(singleBlockLayers(config, block).modulation)) +
    2 * config.attentionHeadDim * config.numAttentionHeads
  );
}

/** Numbers of a table of so many rows; 0 where none is made. */
export function modulationTableSize(config: FluxConfig, rows: number): number {
  const numbers = rows * modulationWidth(config);
  return 4 * numbers > MOST_BYTES ? 0 : numbers;
}
