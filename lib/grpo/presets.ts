/** Starting points. The three DanceGRPO presets are the published scripts' settings. */
import { DanceError } from "../errors.js";
import type { PartialConfig } from "./config.js";

const DANCEGRPO: PartialConfig = {
  groupSize: 12,
  iterations: 300,
  seed: 42,
  rewards: [{ type: "hps-v2.1", path: "HPS_v2.1_compressed.pt" }],
  output: { checkpointEvery: 40 },
};

/** Every preset by name. */
export const PRESETS: Readonly<Record<string, PartialConfig>> = {
  // 16 devices, one prompt each, three updates an iteration.
  "dancegrpo-16gpu": {
    ...DANCEGRPO,
    promptsPerIteration: 1,
    learning: { accumulate: 4, clipNorm: 1 },
  },
  // 8 devices, two prompts each, two updates; the small clip norm and the average came after reward collapses.
  "dancegrpo-8gpu": {
    ...DANCEGRPO,
    promptsPerIteration: 2,
    learning: { accumulate: 12, clipNorm: 0.01, emaDecay: 0.995 },
  },
  "dancegrpo-8gpu-lora": {
    ...DANCEGRPO,
    promptsPerIteration: 2,
    iterations: 301,
    sampling: { steps: 12 },
    learning: {
      accumulate: 12,
      learningRate: 3e-4,
      clipNorm: 1,
      lora: { rank: 128, alpha: 256, targets: ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"] },
    },
    output: { checkpointEvery: 60 },
  },
};

/** @throws {DanceError} `ERR_OPTION` naming the presets there are. */
export function preset(name: string): PartialConfig {
  const found = PRESETS[name];
  if (!found) {
    const known = Object.keys(PRESETS).join(", ");
    throw new DanceError("ERR_OPTION", `preset: expected one of ${known}, got ${JSON.stringify(name)}`);
  }
  return structuredClone(found);
}
