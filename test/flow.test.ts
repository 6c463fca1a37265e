// Numbers between rollout and update: advantages, learning rates, which steps are noisy and which are learned from.
import { describe, expect, it } from "vitest";
import { advantages, standardize } from "../lib/grpo/advantage.js";
import { defaults, type TrainConfig } from "../lib/grpo/config.js";
import { learningRateAt } from "../lib/grpo/learning_rate.js";
import { keyedOrder, trainedSteps } from "../lib/grpo/update.js";
import { windowAt } from "../lib/grpo/window.js";
import type { Pipeline } from "../lib/models/types.js";
import { type NoiseKey, native } from "../lib/native.js";
import { gridOf, samplePlan } from "../lib/sample/sampler.js";
import { floatInput, readCase, readGoldens64 } from "./fixtures/cases.js";

describe("advantages", () => {
  const goldens = readGoldens64("advantage");
  it.each(readCase("advantage").runs.map((run) => [run.name, run] as const))(
    "%s: as DanceGRPO",
    (name, run) => {
      const rewards = [...floatInput(run, "rewards")];
      const group = rewards.map(() => 0);
      const { values } = advantages(rewards, group, "group", run.clamp as number);
      const wanted = goldens.get(`${name}/advantages`)!.values;
      for (const [i, value] of values.entries())
        expect(Math.abs(value - wanted[i]!)).toBeLessThanOrEqual(1e-9);
      expect(advantages(rewards, group, "batch", run.clamp as number).values).toEqual(values);
    },
  );

  it("are taken group by group, or over all", () => {
    const rewards = [1, 2, 3, 10, 10, 10];
    const groups = [0, 0, 0, 1, 1, 1];
    const grouped = advantages(rewards, groups, "group", 5);
    expect(grouped.values.map((value) => Math.round(value * 1e6) / 1e6)).toEqual([-1, 0, 1, 0, 0, 0]);
    expect(grouped.zeroVarianceGroups).toBe(1);
    const whole = advantages(rewards, groups, "batch", 5);
    expect(whole.values[3]).toBeGreaterThan(0.5);
    // Groups may come mixed: the order of pictures does not matter.
    const mixed = advantages([1, 10, 2, 10, 3, 10], [0, 1, 0, 1, 0, 1], "group", 5);
    expect([0, 2, 4].map((i) => mixed.values[i])).toEqual(grouped.values.slice(0, 3));
  });

  it("of a constant group are exactly zero, whatever rounding does to its mean", () => {
    expect(standardize(Array(12).fill(0.1))).toEqual(Array(12).fill(0));
    expect(standardize(Array(7).fill(-1e30))).toEqual(Array(7).fill(0));
  });

  it("are clamped on both sides", () => {
    const rewards = [...Array(40).fill(0), 1];
    const { values } = advantages(
      rewards,
      rewards.map(() => 0),
      "group",
      2,
    );
    expect(Math.max(...values)).toBe(2);
    const falling = advantages(
      rewards.map((reward) => -reward),
      rewards.map(() => 0),
      "group",
      2,
    );
    expect(Math.min(...falling.values)).toBe(-2);
  });

  it("refuse another count", () => {
    expect(() => advantages([1, 2], [0], "group", 5)).toThrow("expected 1 rewards, got 2");
  });
});

describe("learning rates", () => {
  const configOf = (over: Partial<TrainConfig["learning"]>, more: Partial<TrainConfig> = {}) =>
    ({ ...defaults, ...more, learning: { ...defaults.learning, ...over } }) as TrainConfig;

  it.each(readCase("warmup").runs.map((run) => [run.name, run] as const))("%s: as diffusers", (_, run) => {
    const config = configOf({ warmup: run.warmup as number, learningRate: run.lr as number });
    const rates = run.rates as number[];
    for (const [update, rate] of rates.entries())
      expect(learningRateAt(config, update)).toBeCloseTo(rate, 15);
  });

  it("fall linearly, to reach zero after the last update", () => {
    const config = configOf(
      { schedule: "linear", accumulate: 4 },
      { iterations: 2, promptsPerIteration: 2, groupSize: 4 },
    );
    const rates = [0, 1, 2, 3, 4, 5].map(
      (update) => learningRateAt(config, update) / defaults.learning.learningRate,
    );
    expect(rates).toEqual([1, 0.75, 0.5, 0.25, 0, 0]);
  });
});

describe("the window of noisy steps", () => {
  const at = (strategy: "progressive" | "random", iteration: number, stride = 1, interval = 2) =>
    windowAt({ size: 3, stride, interval, strategy }, 8, iteration, 42n);

  it("moves from noise to picture and starts again", () => {
    const firsts = Array.from({ length: 12 }, (_, iteration) => at("progressive", iteration).first);
    expect(firsts).toEqual([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0]);
    const strides = Array.from({ length: 8 }, (_, iteration) => at("progressive", iteration, 2, 1).first);
    expect(strides).toEqual([0, 2, 4, 0, 2, 4, 0, 2]);
  });

  it("lies anywhere when random, equally often, the same for the same seed, and never on the last step", () => {
    const draws = Array.from({ length: 1000 }, (_, turn) => at("random", turn, 1, 1));
    const counts = [0, 1, 2, 3, 4].map((first) => draws.filter((draw) => draw.first === first).length);
    expect(counts.reduce((sum, count) => sum + count)).toBe(1000);
    for (const count of counts) expect(Math.abs(count - 200)).toBeLessThan(5 * Math.sqrt(1000 * 0.2 * 0.8));
    expect(at("random", 17, 1, 1)).toEqual(at("random", 17, 1, 1));
    expect(at("random", 4)).toEqual(at("random", 5)); // the same turn
    const other = Array.from({ length: 50 }, (_, turn) =>
      windowAt({ size: 3, stride: 1, interval: 1, strategy: "random" }, 8, turn, 43n),
    );
    expect(other.map((draw) => draw.first)).not.toEqual(draws.slice(0, 50).map((draw) => draw.first));
  });

  const pipeline = { vaeFactor: 8, scheduler: undefined } as unknown as Pipeline;
  const base = {
    width: 32,
    height: 16,
    steps: 6,
    shift: 3,
    kind: "dance-sde",
    eta: 0.3,
    guidance: 3.5,
  } as const;

  it("decides which steps are taken with noise", () => {
    expect(samplePlan(pipeline, base).kinds).toEqual([...Array(5).fill("dance-sde"), "ode"]);
    const { kinds } = samplePlan(pipeline, { ...base, window: { first: 1, size: 2 } });
    expect(kinds).toEqual(["ode", "dance-sde", "dance-sde", "ode", "ode", "ode"]);
    // The last step is the picture's: it stays without noise even inside.
    expect(samplePlan(pipeline, { ...base, window: { first: 4, size: 2 } }).kinds.at(-1)).toBe("ode");
  });

  it("refuses pictures that are not a whole number of tokens", () => {
    expect(gridOf(pipeline, 32, 16)).toEqual({ rows: 1, columns: 2 });
    for (const [width, height] of [
      [33, 16],
      [32, 8],
      [0, 16],
      [32, Number.NaN],
      [32, -16],
      [24.5, 16],
    ] as const) {
      expect(() => gridOf(pipeline, width, height)).toThrow("expected a multiple of 16 pixels");
    }
  });
});

describe("which steps are learned from", () => {
  const key = (sample: number): NoiseKey => ({
    seed: 1n,
    iteration: 2,
    prompt: 3,
    sample,
    timestep: 0,
    purpose: 3,
  });

  it("is a share of them, at least one", () => {
    expect([15, 11, 3, 1].map((noisy) => trainedSteps(noisy, 0.6))).toEqual([9, 6, 1, 1]);
    expect(trainedSteps(15, 1)).toBe(15);
    expect(trainedSteps(15, 0)).toBe(1);
  });

  it("is a permutation of its own for every picture, by the key alone", () => {
    const orders = Array.from({ length: 400 }, (_, sample) => keyedOrder(key(sample), 6));
    for (const order of orders) expect([...order].sort()).toEqual([0, 1, 2, 3, 4, 5]);
    expect(keyedOrder(key(5), 6)).toEqual(orders[5]);
    // Every step comes first about equally often.
    for (let step = 0; step < 6; step++) {
      const count = orders.filter((order) => order[0] === step).length;
      expect(Math.abs(count - 400 / 6)).toBeLessThan(5 * Math.sqrt((400 * 5) / 36));
    }
  });
});

describe("noise on the host and on a device", () => {
  it("is the same, and differs by every field of its key", async () => {
    const device = native().openDevice("cpu", '{"threads": 2}');
    const base: NoiseKey = { seed: 7n, iteration: 1, prompt: 2, sample: 3, timestep: 4, purpose: 1 };
    const keys = [
      base,
      ...(["iteration", "prompt", "sample", "timestep", "purpose"] as const).map((field) => ({
        ...base,
        [field]: 9,
      })),
      { ...base, seed: 8n },
    ];
    const noise = await device.noise(keys, [3, 5]).promise;
    expect(noise.shape).toEqual([7, 3, 5]);
    const values = await noise.download().promise;
    const rows = keys.map((entry, i) => {
      const row = values.slice(i * 15, (i + 1) * 15);
      expect(row).toEqual(native().keyedNormal(entry, 15));
      return row.join();
    });
    expect(new Set(rows).size).toBe(7);
    noise.dispose();
    device.dispose();
  });
});
