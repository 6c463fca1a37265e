// Short runs of the trainer on the small pipeline.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Device } from "../../lib/device.js";
import type { PartialConfig } from "../../lib/grpo/config.js";
import type { IterationMetrics } from "../../lib/grpo/metrics.js";
import { GrpoTrainer, type RunOptions, type TrainerOptions } from "../../lib/grpo/trainer.js";
import type { Reward, ScoreRequest } from "../../lib/rewards/types.js";
import { smallPipeline } from "./pipeline.js";

export const rewardOf = (
  name: string,
  score: (request: ScoreRequest) => Promise<ArrayLike<number>>,
): Reward => ({
  name,
  score,
  dispose() {},
  [Symbol.dispose]() {},
});

/** Likes bright pictures. */
export const brightness = rewardOf("brightness", async ({ pictures }) =>
  (await pictures()).map(({ data }) => data.reduce((sum, byte) => sum + byte, 0) / data.length / 255),
);

export const PROMPTS = ["a bad cab", "fig", "lemon", "plum", "melon"];

/** 4 pictures an iteration, 2 updates. */
export const SHORT = {
  promptsPerIteration: 1,
  groupSize: 4,
  iterations: 3,
  sampling: { width: 24, height: 16, steps: 4, batch: 4 },
  learning: { learningRate: 1e-3, accumulate: 2, microbatch: 2, clipRange: 0.2 },
} satisfies PartialConfig;

/** Where the models lie and where the run writes. */
export interface Places {
  model: string;
  run: string;
}

/** Runs to its end on a freshly loaded pipeline, telling each iteration's metrics. */
export async function shortRun(
  device: Device,
  { model, run }: Places,
  options: Partial<TrainerOptions> = {},
  runOptions: RunOptions & { onIteration?: (metrics: IterationMetrics) => void } = {},
  dtype: "f32" | "bf16" = "f32",
): Promise<IterationMetrics[]> {
  const pipeline = await smallPipeline(device, model, {}, dtype);
  try {
    const output = { checkpointEvery: 1, ...options.output, folder: run };
    const reward = options.rewards ? {} : { reward: brightness };
    const trainer = new GrpoTrainer({ ...SHORT, prompts: PROMPTS, ...reward, ...options, pipeline, output });
    const all: IterationMetrics[] = [];
    for await (const metrics of trainer.run(runOptions)) {
      runOptions.onIteration?.(metrics);
      all.push(metrics);
    }
    return all;
  } finally {
    pipeline.dispose();
  }
}

export const checkpointsOf = (run: string): string[] => readdirSync(join(run, "checkpoints")).sort();

/** Hashes of all that a run ends with: the exported weights and the last optimizer state. */
export function endOf(run: string): string[] {
  const last = checkpointsOf(run).at(-1)!;
  const files = [
    "final/transformer/diffusion_pytorch_model.safetensors",
    `checkpoints/${last}/optimizer.safetensors`,
  ];
  return files.map((file) =>
    createHash("sha256")
      .update(readFileSync(join(run, file)))
      .digest("hex"),
  );
}
