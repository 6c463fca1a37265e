/** bench/model.mjs without PyTorch: what it plans, when outputs agree, and that it runs, checks and refuses to time what disagrees. */
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
// @ts-expect-error: a script, without types
import { agrees, aimOf, metAim, modelFlops, planOf } from "../bench/model-plan.mjs";
import { testFolder } from "./support/device.js";

const root = join(import.meta.dirname, "..");
const folder = testFolder();

describe("plan of the model bench", () => {
  const full = planOf({ device: "cuda:0" });

  test("is FLUX.1-dev on a GPU and small on a CPU", () => {
    expect(full.transformer).toMatchObject({
      num_layers: 19,
      num_single_layers: 38,
      num_attention_heads: 24,
    });
    expect(full.pixels).toEqual([512, 720, 1024]);
    expect(full.lora.modules).toHaveLength(19 * 4 + 38 * 3);
    expect(planOf({}).sizeName).toBe("small");
    expect(planOf({ device: "cuda:0", size: "small" }).pixels).toEqual([64]);
  });

  test("counts what the published model costs", () => {
    const tera = (kind: string, pixels: number) => modelFlops(full, kind, pixels) / 1e12;
    expect(tera("forward", 512)).toBeCloseTo(21.5, 1);
    expect(tera("forward", 720)).toBeCloseTo(37.3, 1);
    expect(tera("forward", 1024)).toBeCloseTo(74.4, 1);
    expect(tera("lora", 720)).toBeCloseTo(81.3, 1);
    expect(tera("full", 720)).toBeCloseTo(114.0, 1);
  });

  test("has aims for the whole model alone", () => {
    expect(aimOf(full, "forward", 720)).toEqual({ aim: { most: 58, unit: "ms" } });
    expect(aimOf(full, "forward", 720, 4)).toEqual({});
    expect(aimOf(planOf({ device: "cuda:0", layers: "2,4" }), "forward", 720)).toEqual({});
    expect(metAim({ most: 58 }, { ms: 57 })).toBe(true);
    expect(metAim({ least: 450 }, { rate: 449 })).toBe(false);
  });

  test("an iteration brings the training pass that it rests on", () => {
    expect(planOf({ parts: "iteration" }).parts).toEqual(["lora", "iteration"]);
    expect(planOf({ parts: "forward" })).toMatchObject({ parts: ["forward"], vae: null });
  });

  test("refuses what it does not know", () => {
    expect(() => planOf({ size: "large" })).toThrow("--size: expected some of full, small, got large");
    expect(() => planOf({ layers: "19" })).toThrow("--layers: expected 2 whole numbers");
    expect(() => planOf({ pixels: "500" })).toThrow("--pixels: expected multiples of 16");
    expect(() => planOf({ parts: "backward" })).toThrow("--parts");
    expect(() => planOf({ dtypes: "f8" })).toThrow("--dtypes");
  });

  test("asks nobody to be nearer to the truth than PyTorch, and accepts no nonsense", () => {
    expect(agrees("bf16", 0.015, 0.01)).toBe(true);
    expect(agrees("bf16", 0.022, 0.01)).toBe(false);
    expect(agrees("bf16", 0.5, 0.5)).toBe(false);
    expect(agrees("f32", 1e-4, 1e-6)).toBe(false);
    expect(agrees("f32", Number.NaN, 1e-6)).toBe(false);
  });
});

// Each run starts a dozen processes, and other work may share the cores.
const PATIENCE = { timeout: 240_000 };

describe("the model bench with our own side in PyTorch's place", PATIENCE, () => {
  const python = join(folder, "python");
  const fake = join(root, "test", "support", "fake_torch.mjs");
  writeFileSync(python, `#!/bin/sh\nexec "${process.execPath}" "${fake}" "$@"\n`, { mode: 0o755 });

  function bench(parts: string, fault = "") {
    const args = [
      "model",
      "--json",
      "--layers",
      "2,4",
      "--dtypes",
      "f32",
      "--repeat",
      "1",
      "--torch",
      "eager",
    ];
    const result = spawnSync(process.execPath, [join(root, "bench", "run.mjs"), ...args, "--parts", parts], {
      encoding: "utf8",
      env: {
        ...process.env,
        DANCEFLUX_PYTHON: python,
        DANCEFLUX_BENCH_FOLDER: folder,
        DANCEFLUX_FAKE_FAULT: fault,
      },
    });
    const rows = result.stdout
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line));
    return { status: result.status, stderr: result.stderr, rows };
  }

  test("measures every part, each checked", () => {
    const { status, rows, stderr } = bench("forward,lora,full,iteration");
    expect(stderr).toBe("");
    expect(rows.map((row) => row.name)).toEqual([
      "model/forward 64 px, batch 1 f32",
      "model/forward 64 px, batch 4 f32",
      "model/LoRA forward+backward 64 px f32",
      "model/full forward+backward 64 px f32",
      ...["rollout", "decode", "score", "update"].map((stage) => `model/iteration, ${stage} f32`),
      "model/iteration f32",
    ]);
    for (const row of rows) expect(row).toMatchObject({ checked: true, ratio: expect.any(Number) });
    expect(rows[0]).toMatchObject({
      unit: "ms",
      rate: { ours: expect.any(Number) },
      peak: { ours: expect.any(Number) },
    });
    const stages = rows.slice(4, 8).reduce((sum, row) => sum + row.ours, 0);
    expect(rows.at(-1).ours).toBeGreaterThanOrEqual(stages);
    expect(status).toBe(0);
  });

  test("does not time what disagrees", () => {
    const { status, rows } = bench("forward,lora,full", "forward-64-4-0,lora-1,full-4");
    const wrong = rows.filter((row) => !row.checked);
    expect(wrong.map((row) => row.name)).toEqual([
      "model/forward 64 px, batch 4 f32",
      "model/LoRA forward+backward 64 px f32",
      "model/full forward+backward 64 px f32",
    ]);
    for (const row of wrong) expect(row).toMatchObject({ ours: null, theirs: null });
    expect(status).toBe(1);
  });

  test("an iteration counts only with all its stages right", () => {
    const { status, rows } = bench("iteration", "pictures-0");
    const wrong = rows.filter((row) => !row.checked).map((row) => row.name);
    expect(wrong).toEqual(["model/iteration, decode f32", "model/iteration f32"]);
    expect(status).toBe(1);
  });
});
