// Training on the CUDA backend without a GPU: its own sources on an emulated card (cmake/cuda_emulation.cmake), through
// the door as on a real one.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { openDevice } from "../lib/device.js";
import { native } from "../lib/native.js";
import { packageRoot } from "../lib/native-loader.js";
import { testFolder } from "./support/device.js";
import { endOf, shortRun } from "./support/training.js";

const plugins = join(packageRoot, "build", "emulated-cuda");
const libraries = join(packageRoot, "build", "fake-cuda");
const folder = testFolder();

describe.skipIf(!existsSync(join(plugins, "danceflux_cuda.so")))("an emulated CUDA device", () => {
  beforeAll(() => {
    // Read by the engine when it first looks for plugins, which is below.
    process.env.DANCEFLUX_PLUGIN_PATH = plugins;
    process.env.DANCEFLUX_CUDA_LIBRARIES = libraries;
  });

  it("is reported and opened", () => {
    const report = native()
      .probeBackends()
      .find(({ name }) => name === "cuda");
    expect(report).toMatchObject({ state: "READY", devices: 1 });
    using device = openDevice("cuda:0", { synchronous: true, attention: "own", nccl: { minCtas: 4 } });
    expect(device.name).toBe("cuda:0");
    expect(() => openDevice("cuda:0", { graphs: 1 as unknown as boolean })).toThrow(/graphs: expected/);
    expect(() => openDevice("cuda:0", { tf32: 1 as unknown as boolean })).toThrow(/tf32: expected/);
    expect(() => openDevice("cuda:0", { attention: "cudnn" as "own" })).toThrow(
      /attention: expected "auto", "own"/,
    );
  });

  it.each(["f32", "bf16"] as const)(
    "trains in %s: the first ratio is exactly 1 at any batch, and a run repeats",
    async (dtype) => {
      using plain = openDevice("cuda:0");
      using recording = openDevice("cuda:0", { graphs: true });
      const run = async (name: string, microbatch: number, device = plain) => {
        const places = { model: join(folder, "model"), run: join(folder, `${dtype}-${name}`) };
        const options = { learning: { learningRate: 1e-3, accumulate: 2, microbatch, clipRange: 0.2 } };
        const metrics = await shortRun(device, places, { iterations: 2, ...options }, {}, dtype);
        for (const { ratio, loss } of metrics) {
          expect(ratio.firstUpdateMaxDeviation).toBe(0);
          expect(Number.isFinite(loss)).toBe(true);
        }
        return endOf(places.run);
      };
      const first = await run("first", 2);
      expect(await run("again", 2)).toEqual(first);
      expect(await run("graphs", 2, recording)).toEqual(first);
      await run("singly", 1);
      const taken = dtype === "bf16" ? "; attention unified; its gradient composite" : "";
      for (const device of [plain, recording]) {
        expect(device.declined()).toEqual({});
        expect(device.description).toMatch(new RegExp(`, cuDNN 9\\.24\\.0${taken}$`));
      }
    },
    180_000,
  );
});
