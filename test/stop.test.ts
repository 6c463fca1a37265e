// Ctrl-C: once finishes the checkpoint first, twice ends at once. A real process with real signals.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { beforeAll, describe, expect, it } from "vitest";
import { testFolder } from "./support/device.js";
import { writeSmallPipeline } from "./support/pipeline.js";

const root = new URL("..", import.meta.url).pathname;
const folder = testFolder();

// Slow enough that a second signal comes while the first one's rollout is still being scored.
const SLOW = `export default async (pictures) => {
  await new Promise((resolve) => setTimeout(resolve, 100));
  return pictures.map(({ data }) => data[0] + data[5] / 256);
};`;

const CONFIG = {
  model: { path: "model", dtype: "f32" },
  prompts: ["a bad cab", "fig", "lemon"],
  groupSize: 4,
  iterations: 1000,
  sampling: { width: 16, height: 16, steps: 3, batch: 4 },
  learning: { learningRate: 1e-3, accumulate: 4, microbatch: 2, clipRange: 0.1 },
  rewards: [{ type: "module", path: "slow.mjs" }],
  output: { checkpointEvery: 0 },
};

beforeAll(() => {
  // The child is plain JavaScript: it runs the compiled command line.
  execFileSync(join(root, "node_modules/.bin/tsc"), ["-p", root], { cwd: root });
  writeSmallPipeline(join(folder, "model"));
  writeFileSync(join(folder, "slow.mjs"), SLOW);
  writeFileSync(join(folder, "train.json"), JSON.stringify(CONFIG));
}, 120_000);

interface Ended {
  code: number | null;
  lines: { type: string; iteration: number; finished?: boolean }[];
  error: string;
  /** From the first signal to the end. */
  milliseconds: number;
}

/** Trains, and sends the signals one after the other once two iterations are done. */
async function stopped(run: string, signals: NodeJS.Signals[]): Promise<Ended> {
  const args = [
    join(root, "dist/cli.js"),
    "train",
    join(folder, "train.json"),
    "--json",
    "--set",
    `output.folder=${run}`,
  ];
  const child: ChildProcess = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  const result: Ended = { code: null, lines: [], error: "", milliseconds: 0 };
  const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
  let signalled = 0;
  child.stderr!.on("data", (chunk) => {
    result.error += chunk;
    // The second signal follows the words that answer the first.
    if (signalled > 0 && signals.length > 0) child.kill(signals.shift());
  });
  let iterations = 0;
  for await (const line of createInterface({ input: child.stdout! })) {
    const entry = JSON.parse(line);
    result.lines.push(entry);
    if (entry.type === "iteration") iterations++;
    if (iterations === 2 && signalled === 0) {
      signalled = performance.now();
      child.kill(signals.shift());
    }
  }
  result.code = await ended;
  result.milliseconds = performance.now() - signalled;
  return result;
}

describe("a stopped training", () => {
  const run = join(folder, "run");
  const checkpoints = () => readdirSync(join(run, "checkpoints"));

  it("finishes its checkpoint, writes summary and report, and can go on", async () => {
    const first = await stopped(run, ["SIGINT"]);
    expect(first.code).toBe(0);
    expect(first.error).toContain("danceflux: stopping; the checkpoint is written first");
    const done = first.lines.filter(({ type }) => type === "iteration").length;
    expect(first.lines.at(-1)).toMatchObject({ type: "summary", finished: false, iterations: done });
    expect(checkpoints()).toEqual([String(done).padStart(6, "0")]);
    expect(existsSync(join(run, "report.html"))).toBe(true);
    expect(JSON.parse(readFileSync(join(run, "summary.json"), "utf8")).iterations).toBe(done);

    const second = await stopped(run, ["SIGTERM"]);
    expect(second.code).toBe(0);
    expect(second.lines[0]).toMatchObject({ type: "iteration", iteration: done + 1 });
  });

  it("ends at once the second time, and its last checkpoint stays", async () => {
    const before = checkpoints();
    const result = await stopped(run, ["SIGINT", "SIGINT"]);
    expect(result.code).toBe(130);
    expect(result.lines.at(-1)).toMatchObject({ type: "iteration" });
    // One that was being written has its temporary name still; the next run removes it.
    expect(checkpoints().filter((name) => !name.includes(".tmp-"))).toEqual(before);
    expect(result.milliseconds).toBeLessThan(5000);
    expect(existsSync(join(run, "lock"))).toBe(false);
  });
});
