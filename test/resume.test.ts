// Killed at any moment, a run goes on from its last checkpoint, and ends bit for bit where an uninterrupted one ends.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { beforeAll, describe, expect, it } from "vitest";
import { testFolder } from "./support/device.js";
import { writeSmallPipeline } from "./support/pipeline.js";

const root = new URL("..", import.meta.url).pathname;
const child = join(root, "test/support/train-child.mjs");
const folder = testFolder();
const model = join(folder, "model");
const ITERATIONS = 6;

beforeAll(() => {
  // The child is plain JavaScript: it runs the compiled library.
  execFileSync(join(root, "node_modules/.bin/tsc"), ["-p", root], { cwd: root });
  writeSmallPipeline(model);
}, 120_000);

function train(runFolder: string): ChildProcess {
  const args = [child, join(root, "dist"), model, runFolder, String(ITERATIONS)];
  return spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
}

/** Runs until `stopAfter` iterations were told, then kills; answers the exit code, or null after a kill. */
async function trainUntil(runFolder: string, stopAfter = Number.POSITIVE_INFINITY): Promise<number | null> {
  const process = train(runFolder);
  const ended = new Promise<number | null>((resolve) => process.once("exit", resolve));
  for await (const line of createInterface({ input: process.stdout! })) {
    if ((JSON.parse(line) as { iteration: number }).iteration >= stopAfter) process.kill("SIGKILL");
  }
  return ended;
}

const checkpoint = (run: string) => readFileSync(join(run, "checkpoints", "000006", "optimizer.safetensors"));
const withoutTimes = (run: string) =>
  readFileSync(join(run, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => {
      const { seconds, imagesPerSecond, modelFlops, memory, ...rest } = JSON.parse(line);
      return rest;
    });

describe("resume", () => {
  const whole = join(folder, "whole");
  it("runs to its end", async () => {
    expect(await trainUntil(whole)).toBe(0);
    expect(existsSync(join(whole, "final/transformer/diffusion_pytorch_model.safetensors"))).toBe(true);
    expect(readdirSync(join(whole, "checkpoints"))).toEqual(["000005", "000006"]);
  }, 120_000);

  it("ends with the same bits after being killed twice", async () => {
    const broken = join(folder, "broken");
    expect(await trainUntil(broken, 2)).toBe(null);
    expect(await trainUntil(broken, 4)).toBe(null);
    expect(await trainUntil(broken)).toBe(0);
    expect(checkpoint(broken).equals(checkpoint(whole))).toBe(true);
    expect(withoutTimes(broken)).toEqual(withoutTimes(whole));
    const final = (run: string) =>
      readFileSync(join(run, "final/transformer/diffusion_pytorch_model.safetensors"));
    expect(final(broken).equals(final(whole))).toBe(true);
  }, 240_000);
});
