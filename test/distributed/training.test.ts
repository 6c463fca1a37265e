// One training on several ranks: the same pictures, the same rewards and, summed in order, the same weights as on one.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { testFolder } from "../support/device.js";
import { compiled } from "../support/processes.js";
import {
  hashes,
  metricsOf,
  picturesOf,
  trainRanks,
  weightsOf,
  writeTinyConfig,
} from "../support/training_ranks.js";

compiled();
const folder = testFolder();
const runOf = (name: string) => join(folder, name);
let config: string;

interface Line {
  memory: { gradients: number; optimizer: number };
  distributed?: { ranks: number; collectives: number; overlapped: number };
}
const lastLine = (run: string): Line =>
  readFileSync(join(run, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
    .findLast(({ type }) => type === "iteration");

beforeAll(async () => {
  config = writeTinyConfig(folder);
  await trainRanks(1, config, runOf("alone"));
}, 180_000);

/** What depends on nothing but the configuration. */
function expectSame(run: string, other: string): void {
  expect(picturesOf(run)).toEqual(picturesOf(other));
  expect(metricsOf(run)).toEqual(metricsOf(other));
  expect(weightsOf(run)).toEqual(weightsOf(other));
}

describe("ordered training", () => {
  it("makes pictures of every prompt and sample, and moves the weights", () => {
    const names = Object.keys(picturesOf(runOf("alone")));
    expect(names.filter((name) => name.startsWith("pictures/"))).toHaveLength(5 * 16);
    expect(names.filter((name) => name.startsWith("evaluation/"))).toHaveLength(2 * 4);
    expect(metricsOf(runOf("alone"))).toHaveLength(5 + 2);
    const pictures = picturesOf(runOf("alone"));
    expect(pictures["evaluation/000000/0000.png"]).not.toBe(pictures["evaluation/000005/0000.png"]);
  });

  it.each([2, 4])(
    "gives the same on %i ranks, bit for bit",
    async (size) => {
      const run = runOf(`ranks${size}`);
      const ended = await trainRanks(size, config, run);
      expectSame(run, runOf("alone"));
      const state = (of: string) => hashes(join(of, "checkpoints"), /\.safetensors$/);
      expect(state(run)).toEqual(state(runOf("alone")));
      // Only the first rank tells.
      expect(ended[0]!.lines.at(-1)).toMatchObject({ type: "summary", finished: true, iterations: 5 });
      for (const { out, error } of ended.slice(1)) expect([out, error]).toEqual(["", ""]);
      const { distributed } = lastLine(run);
      expect(distributed).toMatchObject({ ranks: size });
      expect(distributed!.overlapped).toBeGreaterThan(0);
    },
    180_000,
  );

  it.each(["optimizer", "optimizer+gradients"])(
    "gives the same with sharding %s",
    async (sharding) => {
      const run = runOf(`sharded-${sharding}`);
      await trainRanks(2, config, run, { set: [`distributed.sharding=${sharding}`] });
      expectSame(run, runOf("alone"));
      const shards = Object.keys(hashes(join(run, "checkpoints", "000005"), /./));
      expect(shards).toEqual([
        "optimizer-00001-of-00002.safetensors",
        "optimizer-00002-of-00002.safetensors",
        "trainer.json",
      ]);
      expect(lastLine(run).memory.optimizer).toBeLessThan(lastLine(runOf("alone")).memory.optimizer * 0.6);
    },
    180_000,
  );
});

describe("fast training", () => {
  const whole = [
    "distributed.collective=fast",
    "distributed.groupSpansRanks=false",
    "learning.accumulate=16",
  ];
  it("gives the same bits however state is sharded, and keeps groups whole", async () => {
    await trainRanks(2, config, runOf("fast"), { set: whole });
    const sharded = runOf("fast-sharded");
    await trainRanks(2, config, sharded, { set: [...whole, "distributed.sharding=optimizer"] });
    expectSame(sharded, runOf("fast"));
    // The first iteration's pictures and rewards do not know of learning.
    const first = /^pictures\/000001\/.*png$/;
    expect(hashes(runOf("fast"), first)).toEqual(hashes(runOf("alone"), first));
    expect(metricsOf(runOf("fast"))[1]).toMatchObject({ reward: metricsOf(runOf("alone"))[1]!.reward });
  }, 180_000);

  it("sheds gradients and gives the same sums, in another order", async () => {
    const set = [...whole, "distributed.sharding=optimizer+gradients"];
    await trainRanks(2, config, runOf("fast-shed"), { set });
    const norm = (run: string) => (metricsOf(run)[1] as { gradientNorm: number }).gradientNorm;
    expect(Math.abs(norm(runOf("fast-shed")) / norm(runOf("fast")) - 1)).toBeLessThan(1e-5);
    const { gradients } = lastLine(runOf("fast-shed")).memory;
    expect(gradients).toBeLessThan(lastLine(runOf("fast")).memory.gradients * 0.8);
  }, 180_000);
});
