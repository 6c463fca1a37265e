// How many blocks an update runs again: from the device's own memory where it has some.
import { freemem } from "node:os";
import { describe, expect, it } from "vitest";
import { trainingPassBytes } from "../lib/grpo/activations.js";
import { passShape } from "../lib/grpo/memory_plan.js";
import { freeForActivations, recomputedBlocks } from "../lib/grpo/recompute.js";
import { completeConfig } from "../lib/grpo/validate.js";
import { FLUX_DEV } from "../lib/models/flux.js";
import { testDevice } from "./support/device.js";

const GIB = 2 ** 30;
const config = completeConfig({
  model: { path: "dev" },
  device: { name: "cuda:0" },
  prompts: ["a"],
  rewards: [{ type: "clip" }],
  learning: { lora: { rank: 32, alpha: 32, targets: ["attn.to_q", "attn.to_k", "attn.to_v"] } },
});
const pass = passShape(config, FLUX_DEV, { imageTokens: 45 * 45, textTokens: 512 }, 1);

describe("blocks that are recomputed", () => {
  it.each([
    ["none" as const, 0],
    ["all" as const, 57],
    [-1, 57],
    [7, 7],
    [99, 57],
  ])("are as many as asked: %s", (recompute, blocks) => {
    expect(recomputedBlocks(recompute, pass, 0)).toBe(blocks);
  });

  it("are as few as fit", () => {
    const none = trainingPassBytes(pass, 0);
    const all = trainingPassBytes(pass, 57);
    expect(all).toBeLessThan(none / 4);
    expect(recomputedBlocks("auto", pass, none)).toBe(0);
    expect(recomputedBlocks("auto", pass, 0)).toBe(57);
    expect(recomputedBlocks("auto", pass, undefined)).toBe(0);
    const some = recomputedBlocks("auto", pass, (none + all) / 2);
    expect(trainingPassBytes(pass, some)).toBeLessThanOrEqual((none + all) / 2);
    expect(trainingPassBytes(pass, some - 1)).toBeGreaterThan((none + all) / 2);
  });
});

describe("memory for activations", () => {
  const report = { used: 30 * GIB, peak: 0, held: 34 * GIB, allocations: 0, systemAllocations: 0 };

  it("is a device's own where it has some, whatever the host has", () => {
    expect(freeForActivations({ ...report, free: 10 * GIB }, 8)).toBeCloseTo(0.9 * 14 * GIB);
    expect(freeForActivations({ ...report, free: 0 }, 1)).toBeCloseTo(0.9 * 4 * GIB);
  });

  it("is else a rank's part of the host's", () => {
    const alone = freeForActivations(report, 1) - 0.6 * 4 * GIB;
    const shared = freeForActivations(report, 4) - 0.6 * 4 * GIB;
    expect(alone / (0.6 * freemem())).toBeCloseTo(1, 0);
    expect(shared / alone).toBeCloseTo(0.25, 1);
  });

  it("is not the CPU's own", () => {
    expect(testDevice().memory().free).toBeUndefined();
  });
});
