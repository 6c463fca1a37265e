import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type NoiseKey, runJob } from "../lib/native.js";
import { networkGuidance, networkTimestep, roundToBf16, sigmaSchedule } from "../lib/sample/schedule.js";
import { readCase, readGoldens } from "./fixtures/cases.js";
import { testDevice, testFolder } from "./support/device.js";
import { smallPipeline } from "./support/pipeline.js";

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

describe("noise of a step", () => {
  const device = testDevice();
  const folder = testFolder();
  const ETA = dance.config.eta as number;
  // As for every forward pass in f32.
  const FORWARD = 1e-5;
  const GRID = { gridRows: 4, gridColumns: 4 };
  const sumOf = (values: Iterable<number>) => [...values].reduce((sum, value) => sum + value, 0);

  it.each(dance.runs.map((run) => [run.name, run.steps as number] as const))(
    "%s: as strong as DanceGRPO's, in the picture and in its probability",
    async (name, steps) => {
      using pipeline = await smallPipeline(device, join(folder, name));
      const shape = [GRID.gridRows * GRID.gridColumns, pipeline.config.inChannels];
      const size = shape[0]! * shape[1]!;
      const keys = (iteration: number): NoiseKey[] =>
        Array.from({ length: steps }, (_, timestep) => ({
          seed: 1n,
          iteration,
          prompt: 0,
          sample: 0,
          timestep,
          purpose: 1,
        }));
      const noiseOf = async (rows: NoiseKey[]) => {
        using noise = await runJob(device.handle.noise(rows, shape));
        return runJob(noise.download());
      };
      using embedding = (await pipeline.encodePrompts(["fig"]))[0]!;
      using start = await runJob(device.handle.noise(keys(0).slice(0, 1), shape));
      const sigmas = [...sigmaSchedule(steps, dance.config.shift as number, 0)];
      // All steps of the schedule as rows of one batch, from the same latents.
      const rows = <T>(value: T): T[] => Array(steps).fill(value);
      const step = async (noise: NoiseKey[]) => {
        const { latents, logProbs } = await runJob(
          pipeline.transformer.sampleStep({
            latents: rows({ tensor: start, row: 0 }),
            prompts: rows(0),
            text: [embedding.text],
            pooled: [embedding.pooled],
            timesteps: sigmas.slice(0, -1).map((sigma) => sigma * 1000),
            guidance: rows(3500),
            ...GRID,
            kind: "dance-sde",
            eta: ETA,
            sigmas: sigmas.slice(0, -1),
            nextSigmas: sigmas.slice(1),
            noise,
            denoised: false,
          }),
        );
        using kept = latents;
        using probabilities = logProbs!;
        return { values: await runJob(kept.download()), logProbs: await runJob(probabilities.download()) };
      };
      const [one, other] = [await step(keys(1)), await step(keys(2))];
      const [z, otherZ] = [await noiseOf(keys(1)), await noiseOf(keys(2))];
      const wanted = danceGoldens.get(`${name}/std`)!.values;
      expect(wanted).toHaveLength(steps);
      for (const [i, std] of wanted.entries()) {
        const row = <T extends Float32Array>(values: T) => values.subarray(i * size, (i + 1) * size);
        // Two draws from one mean: what differs is the noise times its scale.
        const drawn = row(one.values).map((value, place) => value - row(other.values)[place]!);
        const noise = row(z).map((value, place) => value - row(otherZ)[place]!);
        const scale =
          sumOf(drawn.map((value, place) => value * noise[place]!)) / sumOf(noise.map((v) => v * v));
        expect(Math.abs(scale / std - 1), `step ${i}`).toBeLessThanOrEqual(FORWARD);
        // log p = -mean(z^2) / 2 - ln std - ln sqrt(2 pi)
        const square = sumOf(row(z).map((value) => value * value)) / size;
        const told = Math.exp(-one.logProbs[i]! - square / 2 - Math.log(2 * Math.PI) / 2);
        expect(Math.abs(told / std - 1), `step ${i}`).toBeLessThanOrEqual(FORWARD);
      }
    },
  );
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
