/** scripts/gpu-check where there is no GPU: what it would run, how it refuses, the page it writes. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
// @ts-expect-error: a script, without types
import {
  compareRuns,
  modelVerdict,
  parseTests,
  ratioDeviation,
  shareOfCeiling,
  sideBySide,
  writePage,
} from "../scripts/gpu-page.mjs";

const script = join(import.meta.dirname, "..", "scripts", "gpu-check");
let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "danceflux-gpu-check-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Runs it on a machine whose nvidia-smi is the given script, or missing. */
function check(args: string[], nvidiaSmi?: string) {
  const path = `${folder}:${join(process.execPath, "..")}:/usr/bin:/bin`;
  if (nvidiaSmi) writeFileSync(join(folder, "nvidia-smi"), `#!/bin/sh\n${nvidiaSmi}\n`, { mode: 0o755 });
  else rmSync(join(folder, "nvidia-smi"), { force: true });
  return spawnSync(script, args, { encoding: "utf8", env: { ...process.env, PATH: path } });
}
const CARD = 'echo "NVIDIA H200, 9.0, 575.57, 143771 MiB, 1980 MHz, 700.00 W"';

describe("gpu-check", () => {
  test("tells what it would run, for the card that is there", () => {
    const { status, stdout } = check(["--plan", "--json", "--device", "1", "--wheels", "/w"], CARD);
    expect(status).toBe(0);
    const { gpu, architecture, environment, plan } = JSON.parse(stdout);
    expect(gpu.name).toBe("NVIDIA H200");
    expect(architecture).toBe("90-real");
    expect(environment.DANCEFLUX_TEST_BACKEND).toBe("cuda:1");
    expect(environment.DANCEFLUX_CUDA_LIBRARIES).toBe("/w/cu13/lib:/w/cudnn/lib:/w/nccl/lib");
    expect(plan.map((stage: { name: string }) => stage.name)).toEqual([
      "build",
      "ops",
      "gradients",
      "run-to-run",
      "off",
      "own-attention",
      "models",
      "memcheck",
      "racecheck",
      "training",
      "graphs",
      "bench-ops",
      "bench-flux",
      "bench-own-attention",
      "bench-run-to-run",
      "bench-off",
      "bench-torch",
      "bench-model",
    ]);
    expect(plan[5].commands[0]).toMatch(/^DANCEFLUX_TEST_OPTIONS='{"attention": "own"}' /);
    expect(plan[0].commands[0]).toContain("-DCMAKE_CUDA_ARCHITECTURES=90-real -DDANCEFLUX_CUDA_WHEELS=/w");
  });

  test("runs the stages that are asked for", () => {
    const names = (...args: string[]) =>
      JSON.parse(check(["--plan", "--json", ...args], CARD).stdout).plan.map(
        (stage: { name: string }) => stage.name,
      );
    expect(names("--only", "ops,models")).toEqual(["ops", "models"]);
    expect(names("--skip", "memcheck,racecheck,bench-torch,training")).not.toContain("training");
  });

  test("refuses what it does not know, and a machine without a GPU", () => {
    expect(check(["--only", "nothing"], CARD).status).toBe(2);
    expect(check(["--devise", "0"], CARD).status).toBe(2);
    expect(check(["--device", "first"], CARD).status).toBe(2);
    const without = check(["--out", folder]);
    expect(without.status).toBe(3);
    expect(without.stderr).toContain("expected an NVIDIA GPU, found none");
  });

  test("reads what the stages print", () => {
    expect(parseTests("FAILED ops: a\n  b\n3 passed, 1 failed\n")).toMatchObject({
      passed: 3,
      failed: 1,
      bad: true,
      wrong: ["FAILED ops: a"],
    });
    expect(parseTests("0 passed, 0 failed\n").bad).toBe(true); // a filter that meets no test
    expect(() => parseTests("Segmentation fault\n")).toThrow("expected a line");
    const path = join(folder, "metrics.jsonl");
    const line = (deviation: number) =>
      `${JSON.stringify({ ratio: { firstUpdateMaxDeviation: deviation } })}\n`;
    writeFileSync(path, line(0) + line(0));
    expect(ratioDeviation(path)).toEqual({ iterations: 2, ratioDeviation: 0, bad: false });
    writeFileSync(path, line(0) + line(1e-7));
    expect(ratioDeviation(path).bad).toBe(true);
    writeFileSync(path, "{}\n");
    expect(() => ratioDeviation(path)).toThrow("got none");
  });

  test("compares a run with the same run by graphs", () => {
    const write = (name: string, rewards: number[], rollout: number) => {
      const path = join(folder, name);
      const lines = rewards.map((mean, i) =>
        JSON.stringify({
          ...{ type: "iteration", reward: { mean }, rewards: {}, loss: 1, gradientNorm: 2 },
          seconds: { rollout: i === 0 ? 9 : rollout },
        }),
      );
      writeFileSync(path, `${lines.join("\n")}\n`);
      return path;
    };
    const plain = write("plain.jsonl", [1, 2, 3], 0.5);
    expect(compareRuns(plain, write("graphs.jsonl", [1, 2, 3], 0.2))).toEqual({
      ...{ rollouts: { plain: 0.5, graphs: 0.2 }, wrong: [], bad: false },
    });
    expect(compareRuns(plain, write("other.jsonl", [1, 2, 4], 0.2)).wrong).toEqual(["iteration 3 differs"]);
    expect(compareRuns(plain, write("short.jsonl", [1, 2], 0.2)).bad).toBe(true);
  });

  test("compares rates and times the right way round", () => {
    const row = (name: string, ours: number, unit: string) => ({ name, ours, unit, checked: true });
    const [rate, time, alone] = sideBySide(
      [row("a", 600, "TFLOP/s"), row("b", 50, "ms"), row("c", 1, "ms")],
      [row("a", 300, "TFLOP/s"), row("b", 100, "ms")],
    );
    expect(rate.ratio).toBe(2);
    expect(time.ratio).toBe(2);
    expect(alone.ratio).toBeUndefined();
  });

  test("knows a rate's share of the ceiling that was measured beside it", () => {
    const rows = [
      { name: "ceiling: linear 8192 x 8192 to 8192", ours: 700 },
      { name: "ceiling: attention 16384, forward", ours: 600 },
      { name: "linear 1536 x 3072 to 9216", ours: 600 },
      { name: "attention 1536, forward", ours: 450 },
      { name: "attention 1536, forward and backward", ours: 400 },
    ];
    const others = [{ name: "ceiling: linear 8192 x 8192 to 8192", ours: 750 }];
    const shares = rows.map((row) => shareOfCeiling(row, rows, others));
    expect(shares).toEqual([undefined, undefined, 0.8, 0.75, undefined]);
  });

  test("fails a model bench that disagrees, not one that does not fit", () => {
    const row = (more: object) => ({ name: "model/x", ours: 1, checked: true, ...more });
    const verdict = (more: object) => modelVerdict([row({}), row(more)]);
    expect(verdict({})).toMatchObject({ bad: false, wrong: [] });
    expect(verdict({ ours: null, checked: false, note: "ours does not fit: 80 GB" }).bad).toBe(false);
    expect(verdict({ ours: null, checked: false, note: "error 0.2" })).toMatchObject({
      bad: true,
      wrong: ["not timed: model/x (error 0.2)"],
    });
    expect(verdict({ checked: false }).wrong).toEqual(["disagrees: model/x"]);
    expect(modelVerdict([]).bad).toBe(true);
  });

  test("writes a page with states, reasons and numbers", () => {
    const page = writePage({
      date: "2026-01-02",
      commit: "abc1234",
      version: "0.1.0",
      nvcc: "release 13.0",
      cores: 16,
      command: "scripts/gpu-check",
      gpu: { name: "NVIDIA H200", capability: "9.0", driver: "575", memory: "143771 MiB", power: "700 W" },
      stages: [
        {
          name: "ops",
          shows: "ops",
          state: "failed",
          why: "ended",
          seconds: 1.5,
          wrong: ["FAILED x"],
          tail: "end",
        },
        { name: "memcheck", shows: "memory", state: "not run", why: "no compute-sanitizer here" },
        {
          name: "training",
          shows: "trains",
          state: "passed",
          iterations: 20,
          ratioDeviation: 0,
          seconds: 60,
        },
        {
          name: "bench-flux",
          shows: "sizes",
          state: "passed",
          rows: [{ name: "attention 4608, forward", ours: 612.3, unit: "TFLOP/s", checked: true }],
        },
        {
          name: "bench-own-attention",
          shows: "own",
          state: "passed",
          rows: [{ name: "attention 4608, forward", ours: 290, unit: "TFLOP/s", checked: true }],
        },
        {
          name: "bench-torch",
          shows: "torch",
          state: "passed",
          rows: [
            { name: "attention 4608, forward", ours: 580 },
            { name: "ceiling: attention 16384, forward", ours: 680 },
          ],
        },
        {
          name: "bench-model",
          shows: "model",
          state: "passed",
          rows: [
            {
              ...{
                name: "model/forward 720 px, batch 1 bf16",
                ours: 57.3,
                theirs: 71.2,
                ratio: 1.2426,
                unit: "ms",
              },
              ...{ rate: { ours: 650, theirs: 523 }, peak: { ours: 23.9, theirs: 24.4 }, checked: true },
              ...{ aim: { most: 58, unit: "ms", met: true }, note: "PyTorch eager | compiled" },
            },
            {
              name: "model/full 720 px bf16",
              ours: null,
              theirs: null,
              unit: "ms",
              checked: false,
              note: "does not fit",
            },
            {
              name: "model/iteration bf16",
              ours: 18.2,
              theirs: 29,
              ratio: 1.6,
              unit: "s",
              checked: true,
              floor: 14.2,
            },
          ],
        },
      ],
    });
    expect(page).toContain("# NVIDIA H200, 2026-01-02");
    expect(page).toContain("| ops | ops | failed: ended | 1.5 |");
    expect(page).toContain("| memcheck | memory | not run: no compute-sanitizer here | - |");
    expect(page).toContain("over 20 iterations: greatest deviation from 1 is 0");
    expect(page).toContain("| attention 4608, forward | 612.3 | 580 | 1.06 x | TFLOP/s | 90 % | yes |");
    expect(page).toMatch(
      /^\| attention 4608, forward, own kernels \| 290 \| 580 \| 0\.50 x \| TFLOP\/s \| .* \| yes \|$/m,
    );
    expect(page).toContain(
      "| forward 720 px, batch 1 bf16 | 57.3 | 71.2 | 1.24 x | ms | 650 / 523 | 23.9 / 24.4 | at most 58 ms: met | yes | PyTorch eager / compiled |",
    );
    expect(page).toContain("| full 720 px bf16 | - | - | - | ms | - | - | - | NO | does not fit |");
    expect(page).toContain("| iteration bf16 | 18.2 | 29 | 1.60 x | s | - | - | floor 14.2 s | yes | - |");
    expect(page).toContain("- FAILED x");
  });
});
