// PyTorch as side A: scripts/align_torch.py against our own recording, from rollout to update. Skipped where torch and diffusers are missing:
// DANCEFLUX_PYTHON names the interpreter.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { compareDumps } from "../lib/align/compare.js";
import { readDump, recordRun } from "../lib/align/index.js";
import { loadConfig } from "../lib/load_config.js";
import { testFolder } from "./support/device.js";
import { writeTinyConfig } from "./support/training_ranks.js";

const root = join(import.meta.dirname, "..");
const python = process.env.DANCEFLUX_PYTHON ?? "python3";
const found =
  spawnSync(python, ["-c", "import torch, numpy, diffusers"], { stdio: "ignore", timeout: 120_000 })
    .status === 0;
const folder = testFolder();
const at = (name: string) => join(folder, name);

/** Both prompts in every pass: rows that share one prompt share its embedding here, and diffusers has it once per row. */
const SMALL = [
  "promptsPerIteration=2",
  "groupSize=3",
  "sampling.batch=6",
  "learning.accumulate=6",
  "learning.microbatch=64",
  "distributed.collective=fast",
  "iterations=2",
];

describe.skipIf(!found)("a PyTorch run as side A", () => {
  const kinds = ["dance-sde", "flow-sde", "cps"] as const;
  it.each(kinds)(
    "computes rollout, loss, gradients and update as we do (%s)",
    { timeout: 300_000 },
    async (kind) => {
      const eta = kind === "cps" ? 0.8 : 0.3;
      const settings = [...SMALL, `sampling.kind=${kind}`, `sampling.eta=${eta}`];
      const config = await loadConfig(writeTinyConfig(at(kind)), settings);
      const [ours, theirs] = [at(`${kind}-ours`), at(`${kind}-torch`)];
      await recordRun(config, { out: ours, level: "op", summary: "full", steps: [0] });
      const script = join(root, "scripts", "align_torch.py");
      const ran = spawnSync(python, [script, join(root, "models/tiny-shapes"), theirs, "--inputs", ours], {
        encoding: "utf8",
      });
      expect([ran.status, ran.stderr.includes("Error")]).toEqual([0, false]);
      const comparison = await compareDumps(await readDump(theirs), await readDump(ours));
      expect(comparison.sentence).toMatch(/^Aligned/);
      const seen = (wanted: (record: (typeof comparison.findings)[number]["record"]) => boolean) =>
        comparison.findings.filter(({ record }) => wanted(record));
      const noisy = seen(({ name }) => name.startsWith("logProb."));
      expect(noisy.length).toBeGreaterThanOrEqual(6 * 3);
      for (const { error } of noisy) expect(error).toBeLessThan(1e-5);
      for (const name of ["advantages", "ratios", "losses", "gradientNorm"])
        expect(seen((record) => record.name === name).length, name).toBe(1);
      for (const role of ["gradient", "value"]) {
        const parameters = seen((record) => record.op === "parameter" && record.role === role);
        expect(parameters.length, role).toBeGreaterThan(80);
        for (const { error, record } of parameters) expect(error, record.name).toBeLessThan(1e-4);
      }
      expect(seen(({ op, role }) => op === "linear" && role === "gradient").length).toBeGreaterThan(50);
    },
  );
});
