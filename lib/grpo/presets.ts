/**
 * Starting points. The three DanceGRPO presets have the published scripts' batch, that of all their devices together: it stays the same on
 * fewer, which only take longer. `tiny-shapes` is the shipped model's.
 */
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { packageRoot } from "../native-loader.js";
import type { PartialConfig } from "./config.js";

const DANCEGRPO: PartialConfig = {
  groupSize: 12,
  iterations: 300,
  rewards: [{ type: "hps-v2.1", path: "HPS_v2.1_compressed.pt" }],
  output: { checkpointEvery: 40 },
};

/** 12 billion parameters with their gradients and state fit no device alone. */
const SHARED: PartialConfig["distributed"] = { sharding: "optimizer+gradients" };

const TINY = join(packageRoot, "models", "tiny-shapes");
const ATTRIBUTES = { type: "module", path: join(TINY, "attributes.mjs") };

/**
 * The shipped tiny model. One noisy pair of steps at the start, where colour, shape and background are decided, gives the clearest signal for
 * its price; the outer layers, biases and modulations are left alone, because their random walk draws a block pattern into the pictures.
 */
const TINY_SHAPES: PartialConfig = {
  model: { path: TINY, dtype: "f32" },
  prompts: join(TINY, "prompts-train.txt"),
  promptsPerIteration: 8,
  groupSize: 12,
  iterations: 200,
  sampling: {
    width: 64,
    height: 64,
    steps: 8,
    eta: 0.9,
    batch: 48,
    window: { size: 2, strategy: "fixed" },
  },
  learning: {
    learningRate: 2e-4,
    schedule: "linear",
    accumulate: 96,
    microbatch: 48,
    timestepFraction: 1,
    clipRange: 1e-3,
    recompute: "none",
    emaDecay: 0.9,
    trainable: [
      "blocks\\.\\d+\\.(attn\\.(to|add)_.+|ff\\.net\\..+|ff_context\\.net\\..+|proj_mlp|proj_out)\\.weight$",
    ],
  },
  rewards: [{ type: "clip", path: join(TINY, "reward") }],
  evaluation: {
    every: 20,
    prompts: join(TINY, "prompts-heldout.txt"),
    picturesPerPrompt: 6,
    rewards: [
      { type: "clip", path: join(TINY, "reward") },
      { ...ATTRIBUTES, name: "attributes" },
      ...["colour", "shape", "count", "background"].map((attribute) => ({
        ...ATTRIBUTES,
        name: attribute,
        attribute,
      })),
    ],
    steps: 12,
    batch: 48,
    save: 36,
  },
  output: { folder: "runs/tiny-shapes", checkpointEvery: 50 },
};

/** Every preset by name. */
export const PRESETS: Readonly<Record<string, PartialConfig>> = {
  // One prompt and four pictures an update of each device: three updates an iteration.
  "dancegrpo-16gpu": {
    ...DANCEGRPO,
    promptsPerIteration: 16,
    learning: { accumulate: 16 * 4, clipNorm: 1 },
    distributed: SHARED,
  },
  // Two prompts and twelve pictures an update of each device: two updates; the small clip norm and the average came after reward collapses.
  "dancegrpo-8gpu": {
    ...DANCEGRPO,
    promptsPerIteration: 8 * 2,
    learning: { accumulate: 8 * 12, clipNorm: 0.01, emaDecay: 0.995 },
    distributed: SHARED,
  },
  "dancegrpo-8gpu-lora": {
    ...DANCEGRPO,
    promptsPerIteration: 8 * 2,
    iterations: 301,
    sampling: { steps: 12 },
    learning: {
      accumulate: 8 * 12,
      learningRate: 3e-4,
      clipNorm: 1,
      lora: { rank: 128, alpha: 256, targets: ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"] },
    },
    output: { checkpointEvery: 60 },
  },
  "tiny-shapes": TINY_SHAPES,
};

/** @throws {DanceError} `ERR_OPTION` naming the presets there are. */
export function preset(name: string): PartialConfig {
  const found = Object.hasOwn(PRESETS, name) ? PRESETS[name] : undefined;
  if (!found) {
    const known = Object.keys(PRESETS).join(", ");
    throw new DanceError("ERR_OPTION", `preset: expected one of ${known}, got ${JSON.stringify(name)}`);
  }
  return structuredClone(found);
}
