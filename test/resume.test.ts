// Killed at any moment, a run goes on from its last checkpoint, and ends bit for bit where an uninterrupted one ends.
import { type ChildProcess, execFileSync, spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync, watch } from "node:fs";
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

const argumentsOf = (runFolder: string) => [child, join(root, "dist"), model, runFolder, String(ITERATIONS)];

function train(runFolder: string): ChildProcess {
  return spawn(process.execPath, argumentsOf(runFolder), { stdio: ["ignore", "pipe", "inherit"] });
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

/** Goes on with a run and kills it as soon as the checkpoint of `iteration` is being written. */
async function killWhileSaving(runFolder: string, iteration: number): Promise<number | null> {
  const process = train(runFolder);
  process.stdout!.resume();
  const ended = new Promise<number | null>((resolve) => process.once("exit", resolve));
  const temporary = `${String(iteration).padStart(6, "0")}.tmp-`;
  const watcher = watch(join(runFolder, "checkpoints"), (_, name) => {
    if (name?.startsWith(temporary)) process.kill("SIGKILL");
  });
  const code = await ended;
  watcher.close();
  return code;
}

/** Goes on with files limited to some KiB, as if the disk were full there. */
function trainOnFullDisk(runFolder: string, kibibytes: number): { status: number | null; stderr: string } {
  const command = ["-c", `ulimit -f ${kibibytes}; exec "$@"`, "bash", process.execPath];
  return spawnSync("bash", [...command, ...argumentsOf(runFolder)], { encoding: "utf8", timeout: 60_000 });
}

const checkpointsOf = (run: string) => readdirSync(join(run, "checkpoints")).sort();
const checkpoint = (run: string, name = "000006") => join(run, "checkpoints", name, "optimizer.safetensors");
const final = (run: string) => join(run, "final/transformer/diffusion_pytorch_model.safetensors");
const withoutTimes = (run: string) =>
  readFileSync(join(run, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => {
      const { seconds, imagesPerSecond, modelFlops, memory, ...rest } = JSON.parse(line);
      return rest;
    });

function expectSameEnd(run: string, other: string): void {
  for (const file of [checkpoint, final]) {
    expect(readFileSync(file(run)).equals(readFileSync(file(other)))).toBe(true);
  }
  expect(withoutTimes(run)).toEqual(withoutTimes(other));
}

describe("resume", () => {
  const whole = join(folder, "whole");
  it("runs to its end", async () => {
    expect(await trainUntil(whole)).toBe(0);
    expect(existsSync(final(whole))).toBe(true);
    expect(checkpointsOf(whole)).toEqual(["000005", "000006"]);
  }, 120_000);

  it("ends with the same bits after being killed twice", async () => {
    const broken = join(folder, "broken");
    expect(await trainUntil(broken, 2)).toBe(null);
    expect(existsSync(join(broken, "lock"))).toBe(true); // a dead process's, which the next one takes over
    expect(await trainUntil(broken, 4)).toBe(null);
    expect(await trainUntil(broken)).toBe(0);
    expect(existsSync(join(broken, "lock"))).toBe(false);
    expectSameEnd(broken, whole);
  }, 240_000);

  it("ends with the same bits after being killed while it wrote a checkpoint", async () => {
    const broken = join(folder, "killed-saving");
    expect(await trainUntil(broken, 2)).toBe(null);
    expect(await killWhileSaving(broken, 4)).toBe(null);
    // The one before is whole, whatever became of the one under way.
    expect(statSync(checkpoint(broken, "000003")).size).toBe(statSync(checkpoint(whole)).size);
    expect(await trainUntil(broken)).toBe(0);
    expect(checkpointsOf(broken)).toEqual(["000005", "000006"]);
    expectSameEnd(broken, whole);
  }, 240_000);

  it("stops on a full disk, keeps its last checkpoint, and goes on when there is room again", async () => {
    const broken = join(folder, "full");
    expect(await trainUntil(broken, 2)).toBe(null);
    const kept = checkpointsOf(broken);
    const half = Math.floor(statSync(checkpoint(broken, kept.at(-1))).size / 2048);
    const { status, stderr } = trainOnFullDisk(broken, half);
    expect(status).toBe(1);
    expect(stderr).toContain("ERR_CHECKPOINT");
    expect(stderr).toContain("the checkpoint cannot be written");
    expect(checkpointsOf(broken)).toEqual(kept);
    expect(await trainUntil(broken)).toBe(0);
    expectSameEnd(broken, whole);
  }, 240_000);
});
