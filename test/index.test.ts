// The public face: what the documentation shows works as shown, and nothing is left on the device.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import * as danceflux from "../lib/index.js";
import { native } from "../lib/native.js";
import { testFolder } from "./support/device.js";
import { writeSmallPipeline } from "./support/pipeline.js";

const folder = testFolder();
const model = join(folder, "model");
beforeAll(() => {
  writeSmallPipeline(model);
});

const small = {
  groupSize: 4,
  promptsPerIteration: 1,
  iterations: 1,
  sampling: { width: 16, height: 16, steps: 3, batch: 4 },
  learning: { learningRate: 1e-3, accumulate: 4, microbatch: 2 },
};

/** Handles alive, without the count of those that the garbage collector cleaned up. */
const alive = () => {
  const { tensors, models, optimizers, devices } = native().liveHandles();
  return { tensors, models, optimizers, devices };
};

describe("the library", () => {
  const { functionReward, generate, GrpoTrainer, loadPipeline, openDevice, preset } = danceflux;
  const firstByte = functionReward("first byte", (pictures) =>
    pictures.map(({ data }) => data[0]! + data[7]! / 256),
  );

  it("trains with a loaded reward on top of a preset that names another", async () => {
    const before = alive();
    {
      using device = openDevice("cpu", { threads: 2 });
      using pipeline = await loadPipeline(model, { device });
      const trainer = new GrpoTrainer({
        ...preset("dancegrpo-8gpu"),
        ...small,
        pipeline,
        reward: firstByte,
        prompts: ["fig", "plum"],
        output: { folder: join(folder, "api") },
      });
      const means: number[] = [];
      for await (const step of trainer.run())
        means.push(step.reward.mean, step.ratio.firstUpdateMaxDeviation);
      expect(means).toEqual([expect.any(Number), 0]);
      expect(trainer.config.rewards).toEqual([{ type: "first byte", weight: 1 }]);
    }
    expect(alive()).toEqual(before);
  });

  it("wants a reward that is loaded", async () => {
    using device = openDevice("cpu");
    using pipeline = await loadPipeline(model, { device });
    const options = { ...preset("dancegrpo-8gpu"), pipeline, prompts: ["fig"] };
    expect(() => new GrpoTrainer(options)).toThrow(
      "rewards: expected loaded rewards, got none or only their names",
    );
  });

  it("generates pictures that do not depend on the batch, and leaves nothing behind", async () => {
    const before = alive();
    {
      using device = openDevice("cpu");
      using pipeline = await loadPipeline(model, { device });
      const draw = async (batch: number) => {
        const pictures: string[] = [];
        const options = {
          prompts: ["fig", "plum"],
          width: 16,
          height: 16,
          steps: 2,
          picturesPerPrompt: 2,
          batch,
        };
        for await (const { picture } of generate(pipeline, options))
          pictures.push(Buffer.from(picture.data).toString("hex"));
        return pictures;
      };
      const one = await draw(1);
      expect(new Set(one).size).toBe(4);
      expect(await draw(3)).toEqual(one);
    }
    expect(alive()).toEqual(before);
  });
});

describe("trainFromConfig", () => {
  const { completeConfig, trainFromConfig } = danceflux;
  const moduleReward = (body: string) => {
    const path = join(folder, "reward.mjs");
    writeFileSync(path, `export default (pictures) => ${body};`);
    return [{ type: "module", path }];
  };
  const config = (run: string, body: string, more: object = {}) =>
    completeConfig({
      ...small,
      model: { path: model, dtype: "f32" },
      prompts: ["fig", "plum"],
      rewards: moduleReward(body),
      output: { folder: join(folder, run) },
      ...more,
    });

  it("gives everything back, after a good end and after a bad one", async () => {
    const before = alive();
    const good = await trainFromConfig(config("good", "pictures.map((p) => p.data[0] + p.data[5] / 256)"));
    expect(good).toMatchObject({ finished: true, summary: { measured: "training", iterations: 1 } });
    expect(alive()).toEqual(before);
    await expect(
      trainFromConfig(config("bad", "[]", { seed: 3, model: { path: join(folder, "none") } })),
    ).rejects.toMatchObject({ code: "ERR_FILE" });
    const missing = completeConfig({
      ...config("worse", "[]"),
      rewards: [{ type: "clip", path: join(folder, "none") }],
    });
    await expect(trainFromConfig(missing)).rejects.toMatchObject({ code: "ERR_FILE" });
    expect(alive()).toEqual(before);
  });

  it("ends with the reason of an abort", async () => {
    const before = alive();
    const controller = new AbortController();
    const options = {
      signal: controller.signal,
      onProgress: () => controller.abort(new Error("enough")),
    };
    await expect(trainFromConfig(config("aborted", "pictures.map(() => 1)"), options)).rejects.toThrow(
      "enough",
    );
    expect(alive()).toEqual(before);
  });

  it.each(["encode", "evaluate"])(
    "stops at once before anything is learned, while it does %s",
    async (stage) => {
      const evaluation = { every: 1, prompts: ["fig", "plum"], steps: 2, batch: 1 };
      const stopping = config(`stopped-${stage}`, "pictures.map((p) => p.data[0])", { evaluation });
      const controller = new AbortController();
      let told = 0;
      const stopped = await trainFromConfig(stopping, {
        stop: controller.signal,
        onProgress: (progress) => {
          if (progress.stage !== stage) return;
          told++;
          controller.abort();
        },
      });
      expect(told).toBe(1);
      expect(stopped).toMatchObject({ finished: false, summary: { before: null, iterations: 0 } });
      const again = await trainFromConfig(stopping);
      expect(again).toMatchObject({ finished: true, summary: { measured: "evaluation", iterations: 1 } });
    },
  );

  it("loads a reward once that training and evaluation share", async () => {
    const shared = { type: "clip", path: new URL("../models/tiny-shapes/reward", import.meta.url).pathname };
    const models: number[] = [];
    const evaluation = {
      every: 1,
      prompts: ["one red circle on a white background"],
      rewards: [{ ...shared, weight: 2 }],
      steps: 2,
    };
    const prompts = ["two blue squares on a gray background"];
    await trainFromConfig(config("shared", "[]", { rewards: [shared], evaluation, prompts }), {
      onProgress: () => models.push(alive().models),
    });
    // The transformer, the autoencoder, the scorer; until training starts also two text encoders.
    expect([Math.min(...models), Math.max(...models)]).toEqual([3, 5]);
  });
});
