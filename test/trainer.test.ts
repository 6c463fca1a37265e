// The training loop on a small random model: the promises that a run makes.
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Device } from "../lib/device.js";
import type { PartialConfig } from "../lib/grpo/config.js";
import type { IterationMetrics } from "../lib/grpo/metrics.js";
import { GrpoTrainer, type TrainerOptions } from "../lib/grpo/trainer.js";
import type { Pipeline } from "../lib/models/types.js";
import type { Reward } from "../lib/rewards/types.js";
import { testDevice, testFolder } from "./support/device.js";
import { smallPipeline } from "./support/pipeline.js";

const device = testDevice({ threads: 2 });
const folder = testFolder();
let runs = 0;

/** Likes red pictures. */
const redness: Reward = {
  name: "red",
  async score({ pictures }) {
    return (await pictures()).map(({ data }) => {
      let red = 0;
      for (let i = 0; i < data.length; i += 3) red += data[i]! - data[i + 1]! / 2 - data[i + 2]! / 2;
      return red / data.length;
    });
  },
  dispose() {},
  [Symbol.dispose]() {},
};

const SMALL: PartialConfig = {
  promptsPerIteration: 1,
  groupSize: 12,
  iterations: 2,
  sampling: { width: 24, height: 16, steps: 4, batch: 4 },
  learning: { learningRate: 1e-3, accumulate: 12, microbatch: 2, clipRange: 0.2 },
};

async function trained(
  options: Partial<TrainerOptions>,
  on: Device = device,
): Promise<{ metrics: IterationMetrics[]; weights: Float32Array; pipeline: Pipeline }> {
  const path = join(folder, `run${runs++}`);
  const pipeline = await smallPipeline(on, join(folder, "model"));
  const trainer = new GrpoTrainer({
    ...SMALL,
    prompts: ["a bad cab", "fig", "lemon", "plum"],
    reward: redness,
    ...options,
    pipeline,
    output: { folder: path, ...options.output },
  });
  const metrics: IterationMetrics[] = [];
  for await (const line of trainer.run()) metrics.push(line);
  const weights = await pipeline.transformer.read("transformer_blocks.0.attn.to_q.weight", "value").promise;
  pipeline.dispose();
  return { metrics, weights, pipeline };
}

describe("the ratio before the first update", () => {
  const cases = [1, 4, 5, 12].flatMap((batch) => [1, 2, 3].map((microbatch) => [batch, microbatch] as const));
  it.each(cases)(
    "is exactly 1 with a rollout batch of %i and a microbatch of %i",
    async (batch, microbatch) => {
      const { metrics } = await trained({
        iterations: 1,
        sampling: { ...SMALL.sampling, batch },
        learning: { ...SMALL.learning, microbatch },
      });
      expect(metrics[0]!.ratio.firstUpdateMaxDeviation).toBe(0);
    },
  );

  it.each(["dance-sde", "flow-sde", "cps"] as const)("is exactly 1 for %s", async (kind) => {
    const { metrics } = await trained({
      iterations: 1,
      sampling: { ...SMALL.sampling, kind, eta: 0.5, batch: 5 },
    });
    expect(metrics[0]!.ratio.firstUpdateMaxDeviation).toBe(0);
    expect(metrics[0]!.ratio.maxDeviation).toBe(0);
  });
});

describe("learning", () => {
  it("moves the weights, and the ratio of later updates with them", async () => {
    const { metrics } = await trained({ learning: { ...SMALL.learning, accumulate: 4 } });
    expect(metrics[0]!.updates).toBe(3);
    expect(metrics[0]!.ratio.firstUpdateMaxDeviation).toBe(0);
    expect(metrics[0]!.ratio.maxDeviation).toBeGreaterThan(0);
    expect(metrics[0]!.gradientNorm).toBeGreaterThan(0);
  });

  it("learns nothing from groups whose rewards are equal, and counts them", async () => {
    const indifferent: Reward = {
      ...redness,
      name: "same",
      score: async ({ prompts }) => prompts.map(() => 0.1),
    };
    const { metrics } = await trained({ iterations: 1, reward: indifferent });
    expect(metrics[0]).toMatchObject({
      zeroVarianceGroups: 1,
      gradientNorm: 0,
      advantage: { min: 0, max: 0 },
    });
  });

  it("trains adapters and leaves the base alone", async () => {
    const lora = { rank: 2, alpha: 4, targets: ["to_q", "to_out.0"] };
    const base = await trained({ iterations: 1, learning: { ...SMALL.learning, learningRate: 0 } });
    const { metrics, weights } = await trained({ learning: { ...SMALL.learning, lora } });
    expect(metrics[1]!.gradientNorm).toBeGreaterThan(0);
    expect(weights).toEqual(base.weights);
  });
});

describe("determinism", () => {
  it("gives the same bits for any rollout batch and thread count", async () => {
    const one = await trained({});
    const other = await trained({ sampling: { ...SMALL.sampling, batch: 5 } });
    expect(other.weights).toEqual(one.weights);
    const single = testDevice({ threads: 1 });
    expect((await trained({}, single)).weights).toEqual(one.weights);
  });
});
