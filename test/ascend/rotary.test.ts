// A device whose rotary embedding pairs the wrong channels, as happened in a port: its loss and its reward look normal, and the parity
// tool names the op.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { ascendDouble } from "../../scripts/common.mjs";
import { testFolder } from "../support/device.js";
import { compiled, dist, type Ended, start } from "../support/processes.js";
import { metricsOf, trainRanks, writeTinyConfig } from "../support/training_ranks.js";

const env: Record<string, string> = { ...ascendDouble("9.0"), DANCEFLUX_THREADS: "2" };
const wrong = { ...env, ASCEND_DOUBLE_DEFECT: "rotary-half" };
const built = existsSync(join(env.ASCEND_HOME_PATH!, "lib64", "libascendcl.so"));

interface Iteration {
  type: string;
  loss: number;
  gradientNorm: number;
  reward: { mean: number; std: number };
  ratio: { firstUpdateMaxDeviation: number };
  skippedUpdates: number;
}

describe.skipIf(!built)("half-mode rotation in place of interleaved, on the Ascend double", () => {
  compiled();
  const folder = testFolder();
  const at = (name: string) => join(folder, name);
  let config: string;

  const align = (args: string[], environment = env): Promise<Ended> =>
    start(process.execPath, [join(dist, "cli.js"), "align", ...args, "--json"], environment).ended;
  const record = async (name: string, side: string, environment = env) => {
    const ended = await align(
      ["record", config, "--side", side, "--level", "op", "--out", at(name)],
      environment,
    );
    expect(ended.code, ended.error).toBe(0);
  };
  const compare = async (a: string, b: string) => {
    const { code, out } = await align(["compare", at(a), at(b)]);
    return { code, ...JSON.parse(out) };
  };

  beforeAll(async () => {
    config = writeTinyConfig(folder);
    await record("cpu", "cpu");
    await record("right", "ascend");
    await record("wrong", "ascend", wrong);
  }, 300_000);

  it("is found at the first rotated op, where the right mode is aligned", async () => {
    expect(await compare("right", "cpu")).toMatchObject({ code: 0, aligned: true });
    const { code, aligned, first } = await compare("wrong", "cpu");
    expect([code, aligned]).toEqual([1, false]);
    expect(first).toMatchObject({ op: "qk_norm_rope", role: "output" });
    expect(first.stage).toMatch(/^it0\/rollout\/s0/);
  });

  it("leaves loss, reward and ratio as they are expected to look", async () => {
    const run = async (name: string, environment: Record<string, string>) => {
      await trainRanks(1, config, at(name), {
        env: environment,
        set: ["device.name=ascend", "iterations=3"],
      });
      return metricsOf(at(name)).filter(({ type }) => type === "iteration") as unknown as Iteration[];
    };
    const [good, bad] = [await run("good", env), await run("bad", wrong)];
    expect(bad).toHaveLength(3);
    for (const [i, { loss, gradientNorm, reward, ratio, skippedUpdates }] of bad.entries()) {
      expect(Math.abs(loss)).toBeLessThan(0.05);
      expect([ratio.firstUpdateMaxDeviation, skippedUpdates]).toEqual([0, 0]);
      expect(gradientNorm / good[i]!.gradientNorm).toBeGreaterThan(0.2);
      expect(gradientNorm / good[i]!.gradientNorm).toBeLessThan(5);
      expect(Math.abs(reward.mean - good[i]!.reward.mean)).toBeLessThan(
        3 * Math.max(good[i]!.reward.std, reward.std),
      );
    }
  }, 300_000);
});
