import { describe, expect, it } from "vitest";
import { networkGuidance, networkTimestep, roundToBf16, sigmaSchedule } from "../lib/sample/schedule.js";
import { readCase, readGoldens } from "./fixtures/cases.js";

const dance = readCase("schedule-dance");
const danceGoldens = readGoldens("schedule-dance");

describe("fixed shift", () => {
  it.each(dance.runs.map((run) => [run.name, run] as const))("%s: bit for bit", (name, run) => {
    const sigmas = sigmaSchedule(run.steps as number, 3, 0);
    expect([...sigmas]).toEqual([...danceGoldens.get(`${name}/sigmas`)!.values]);
  });

  it.each(dance.runs.map((run) => [run.name, run] as const))(
    "%s: truncated timesteps, f32 and bf16",
    (_, run) => {
      const sigmas = [...sigmaSchedule(run.steps as number, 3, 0)].slice(0, -1);
      expect(sigmas.map((s) => networkTimestep(s, { integer: true, bf16: false }))).toEqual(run.seen_f32);
      expect(sigmas.map((s) => networkTimestep(s, { integer: true, bf16: true }))).toEqual(run.seen_bf16);
    },
  );

  it("falls into the trap that float64 would miss: 12 steps, the 9th timestep is 599", () => {
    expect(networkTimestep(sigmaSchedule(12, 3, 0)[8]!, { integer: true, bf16: false })).toBe(599);
  });

  it("refuses impossible numbers", () => {
    expect(() => sigmaSchedule(0, 3, 0)).toThrow("steps: expected 1 or more, got 0");
    expect(() => sigmaSchedule(4, 0, 0)).toThrow('shift: expected a number above 0 or "dynamic", got 0');
  });
});

describe("dynamic shift", () => {
  const source = readCase("schedule-diffusers");
  const goldens = readGoldens("schedule-diffusers");
  const runs = source.runs.filter((run) => run.use_dynamic_shifting);
  it.each(runs.map((run) => [run.name, run] as const))("%s", (name, run) => {
    const sigmas = sigmaSchedule(run.steps as number, "dynamic", run.tokens as number);
    const wanted = goldens.get(`${name}/sigmas`)!.values;
    expect(sigmas).toHaveLength(wanted.length);
    // NumPy's exp may differ from ours in the last bit, which float32 shows as at most two units in the last place.
    for (const [i, sigma] of sigmas.entries())
      expect(Math.abs(sigma - wanted[i]!)).toBeLessThanOrEqual(1.2e-7);
  });
});

describe("bf16", () => {
  it("rounds to nearest, ties to even", () => {
    expect(roundToBf16(3.5)).toBe(3.5);
    expect(roundToBf16(988.41)).toBe(988);
    expect(roundToBf16(3500)).toBe(3504);
    expect(roundToBf16(1 + 2 ** -8)).toBe(1);
    expect(roundToBf16(1 + 3 * 2 ** -8)).toBe(1 + 2 ** -6);
  });

  it("turns guidance 3.5 into 3504, as diffusers does in bf16", () => {
    expect(networkGuidance(3.5, true)).toBe(3504);
    expect(networkGuidance(3.5, false)).toBe(3500);
  });
});
