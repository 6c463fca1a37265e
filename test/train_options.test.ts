// Options of a training run: what is refused and how, what presets hold, what makes two runs the same.
import { describe, expect, it } from "vitest";
import type { PartialConfig, TrainConfig } from "../lib/grpo/config.js";
import { PRESETS, preset } from "../lib/grpo/presets.js";
import { completeConfig, configHash } from "../lib/grpo/validate.js";
import { nearest } from "../lib/nearest.js";

const BASE = { model: { path: "m" }, prompts: ["a"], rewards: [{ type: "clip" }] } satisfies PartialConfig;
const complete = (over: object): TrainConfig => completeConfig({ ...BASE, ...over } as PartialConfig);

/** An object with one dotted name set. */
const withOption = (name: string, value: unknown): object =>
  name.split(".").reduceRight<unknown>((inner, key) => ({ [key]: inner }), value) as object;

function refusal(config: object): { code?: string; message: string; hint?: string } {
  try {
    complete(config);
  } catch (error) {
    return error as Error;
  }
  throw new Error(`expected ${JSON.stringify(config)} to be refused`);
}

describe("unknown options", () => {
  it.each([
    ["learning.learningrate", "learning.learningRate"],
    ["sampling.step", "sampling.steps"],
    ["groupsize", "groupSize"],
    ["output.keeps", "output.keep"],
    ["learning.adam.beta", "learning.adam.beta1"],
    ["sampling.window.sizes", "sampling.window.size"],
    ["prompt", "prompts"],
  ])("%s: the nearest is told", (name, known) => {
    expect(refusal(withOption(name, 1))).toMatchObject({
      code: "ERR_OPTION",
      message: `config: ${name}: expected a known option, got none of that name`,
      hint: `the nearest is ${known}`,
    });
  });

  it("that come in an unknown group: the group is told", () => {
    expect(refusal(withOption("learnig.learningRate", 1))).toMatchObject({
      message: "config: learnig: expected a known option, got none of that name",
      hint: "the nearest is learning",
    });
  });

  it("that begin a known one: that one is told, however long it is", () => {
    expect(nearest("hps", ["http", "hps-v2.1", "clip"])).toBe("hps-v2.1");
    expect(nearest("trian", ["train", "plan"])).toBe("train");
  });

  it.each(["constructor", "__proto__", "toString", "hasOwnProperty", "learning.valueOf"])(
    "%s is one of them",
    (name) => {
      const config = JSON.parse(JSON.stringify(withOption("x", 1)).replace('"x"', JSON.stringify(name)));
      expect(refusal({ ...withOption(name, 1), ...config })).toMatchObject({ code: "ERR_OPTION" });
      expect(() => preset(name)).toThrow("preset: expected one of");
    },
  );
});

const WRONG: Record<string, unknown[]> = {
  "model.path": ["", 3, null],
  "model.dtype": ["fp32", "int8", 16],
  "device.name": ["", 1],
  prompts: [3, [3], null],
  promptsPerIteration: [0, -1, 1.5, "1", Number.NaN, 1n],
  groupSize: [1, 0, 2.5],
  iterations: [0, Number.POSITIVE_INFINITY],
  seed: [-1, 2 ** 53, 42n, "42"],
  embeddingCache: ["", true],
  "sampling.width": [8, "720", 720.5],
  "sampling.height": [0],
  "sampling.steps": [1, 0],
  "sampling.shift": [0, -3, "auto", Number.NaN],
  "sampling.guidance": [-1, "3.5"],
  "sampling.kind": ["ode", "sde", 1],
  "sampling.eta": [0, -0.3],
  "sampling.window.size": [0],
  "sampling.window.stride": [0],
  "sampling.window.interval": [0.5],
  "sampling.window.strategy": ["forward"],
  "sampling.batch": [0],
  "sampling.sameNoise": [1, "yes"],
  "learning.learningRate": [-1e-5, "1e-5", null],
  "learning.schedule": ["cosine"],
  "learning.warmup": [-1, 0.5],
  "learning.adam.beta1": [1, -0.1],
  "learning.adam.beta2": [1.5],
  "learning.adam.eps": [0],
  "learning.adam.weightDecay": [-1],
  "learning.clipNorm": [-1],
  "learning.clipRange": [0],
  "learning.clipAdvantage": [0, -5],
  "learning.advantage": ["global"],
  "learning.mixture": ["product"],
  "learning.timestepFraction": [1.1, -0.1],
  "learning.accumulate": [0],
  "learning.microbatch": [0],
  "learning.recompute": ["some", -1, 1.5],
  "learning.emaDecay": [1, -0.5],
  "learning.lora.rank": [0, 1.5],
  "learning.lora.alpha": [0],
  "learning.lora.targets": ["to_q", [1]],
  "learning.trainable": ["attn", ["("], [1]],
  rewards: [[], {}, "clip"],
  "evaluation.every": [-1],
  "evaluation.prompts": [1, [null]],
  "evaluation.picturesPerPrompt": [0],
  "evaluation.rewards": ["clip"],
  "evaluation.steps": [0],
  "evaluation.kind": ["ddim"],
  "evaluation.batch": [0],
  "evaluation.save": [-1],
  "output.folder": ["", 1],
  "output.checkpointEvery": [-1],
  "output.keep": [0],
  "output.picturesEvery": [-1],
  "output.saveInBackground": ["no"],
  "distributed.sharding": ["zero", 1],
  "distributed.collective": ["ring"],
  "distributed.bucketMiB": [0, -1, 5000, "25"],
  "distributed.groupSpansRanks": [1],
  "distributed.overlap": ["no"],
  "compat.bf16Timesteps": ["on"],
  "compat.integerTimesteps": [0],
  "compat.sameOrderEveryEpoch": [null],
  "compat.noiseSharedAcrossPrompts": ["no"],
};

describe("wrong values", () => {
  const cases = Object.entries(WRONG).flatMap(([name, values]) =>
    values.map((value) => [name, value] as const),
  );
  it.each(cases)("%s cannot be %s", (name, value) => {
    const { code, message } = refusal(withOption(name, value));
    expect(code).toBe("ERR_OPTION");
    expect(message.startsWith(`config: ${name}: expected `), message).toBe(true);
    expect(message).toMatch(/, got .+$/);
  });

  it.each(["sampling", "learning", "learning.adam", "output", "compat"])("%s holds options", (name) => {
    for (const value of [3, null, "x", [], true]) {
      expect(refusal(withOption(name, value)).message).toMatch(`config: ${name}: expected options, got`);
    }
  });

  it("no configuration at all", () => {
    for (const value of [null, undefined, [], 3, "x"]) {
      expect(() => completeConfig(value as never)).toThrow("config: expected an object");
    }
    expect(() => completeConfig({})).toThrow("config: model.path: expected a value, got undefined");
    expect(() => completeConfig({ model: {}, prompts: ["a"], rewards: [{ type: "clip" }] })).toThrow(
      "model.path",
    );
    expect(() => completeConfig({ model: { path: "m" }, rewards: [{ type: "clip" }] })).toThrow(
      "config: prompts",
    );
    expect(() => completeConfig({ model: { path: "m" }, prompts: ["a"] })).toThrow("config: rewards");
  });
});

describe("options that do not go together", () => {
  it.each<[string, PartialConfig, string]>([
    [
      "accumulate",
      { promptsPerIteration: 2, groupSize: 6, learning: { accumulate: 5 } },
      "learning.accumulate: expected a divisor of the 12 pictures",
    ],
    [
      "window",
      { sampling: { steps: 6, window: { size: 6, strategy: "fixed" } } },
      "sampling.window.size: expected less than the 6 steps",
    ],
    ["half a window", { sampling: { window: { size: 2 } } }, "sampling.window.strategy: expected a value"],
    [
      "half an adapter",
      { learning: { lora: { rank: 8, targets: ["to_q"] } } },
      "learning.lora.alpha: expected a value",
    ],
    ["cps", { sampling: { kind: "cps", eta: 1.2 } }, "sampling.eta: expected at most 1 for cps"],
    [
      "cps of an evaluation",
      { sampling: { eta: 1.2 }, evaluation: { every: 1, prompts: ["b"], kind: "cps" } },
      "at most 1 for cps",
    ],
    [
      "adapters and patterns",
      { learning: { lora: { rank: 1, alpha: 1, targets: ["to_q"] }, trainable: ["a"] } },
      "learning.trainable: expected nothing beside",
    ],
    [
      "evaluation without prompts",
      { evaluation: { every: 2 } },
      "evaluation.prompts: expected held-out prompts",
    ],
  ])("%s", (_, config, message) => {
    expect(refusal(config).message).toContain(message);
  });

  it("but any divisor of the pictures may be accumulated", () => {
    for (const accumulate of [1, 2, 3, 4, 6, 12]) {
      expect(
        complete({ promptsPerIteration: 2, groupSize: 6, learning: { accumulate } }).learning.accumulate,
      ).toBe(accumulate);
    }
  });
});

describe("presets", () => {
  // What DanceGRPO's scripts say, per device.
  const PUBLISHED = {
    "dancegrpo-16gpu": {
      devices: 16,
      promptsPerIteration: 1,
      accumulate: 4,
      steps: 16,
      learningRate: 1e-5,
      clipNorm: 1,
      emaDecay: 0,
      every: 40,
    },
    "dancegrpo-8gpu": {
      devices: 8,
      promptsPerIteration: 2,
      accumulate: 12,
      steps: 16,
      learningRate: 1e-5,
      clipNorm: 0.01,
      emaDecay: 0.995,
      every: 40,
    },
    "dancegrpo-8gpu-lora": {
      devices: 8,
      promptsPerIteration: 2,
      accumulate: 12,
      steps: 12,
      learningRate: 3e-4,
      clipNorm: 1,
      emaDecay: 0,
      every: 60,
    },
  } as const;

  it.each(Object.entries(PUBLISHED))(
    "%s is as published, over all devices",
    (name, { devices, ...published }) => {
      const config = completeConfig({ preset: name, model: { path: "m" }, prompts: ["a"] });
      const { learning, sampling, output } = config;
      expect({
        promptsPerIteration: config.promptsPerIteration / devices,
        accumulate: learning.accumulate / devices,
        steps: sampling.steps,
        learningRate: learning.learningRate,
        clipNorm: learning.clipNorm,
        emaDecay: learning.emaDecay,
        every: output.checkpointEvery,
      }).toEqual(published);
      expect(config).toMatchObject({ groupSize: 12, seed: 42 });
      expect(sampling).toMatchObject({
        width: 720,
        height: 720,
        shift: 3,
        eta: 0.3,
        guidance: 3.5,
        kind: "dance-sde",
        sameNoise: true,
      });
      expect(learning).toMatchObject({
        clipRange: 1e-4,
        clipAdvantage: 5,
        timestepFraction: 0.6,
        schedule: "constant",
        warmup: 0,
      });
      expect(learning.adam).toEqual({ beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 1e-4 });
      expect(Object.values(config.compat).filter(Boolean)).toHaveLength(1); // integer timesteps are its arithmetic, the rest its bugs
    },
  );

  it("are all complete with a model and prompts, and may be overridden", () => {
    for (const name of Object.keys(PRESETS)) {
      const config = completeConfig({
        preset: name,
        model: { path: "m" },
        prompts: ["a"],
        seed: 7,
        output: { keep: 9 },
      });
      expect(config).toMatchObject({ seed: 7, output: { keep: 9 } });
      expect(config).not.toHaveProperty("preset");
    }
  });

  it("are the caller's to change", () => {
    preset("dancegrpo-8gpu").learning!.accumulate = 1;
    expect(preset("dancegrpo-8gpu").learning!.accumulate).toBe(96);
    expect(() => preset("dancegrpo")).toThrow("preset: expected one of dancegrpo-16gpu");
  });
});

describe("the hash of a configuration", () => {
  const base = complete({});
  const hashOf = (over: object) => configHash(complete(over));

  it("knows nothing of the order of options", () => {
    const reversed = Object.fromEntries(Object.entries(base).reverse()) as unknown as TrainConfig;
    expect(configHash(reversed)).toBe(configHash(base));
  });

  it("stays what it was when the same run is described by a later version", () => {
    const described = {
      model: { path: "m" },
      device: { name: "cpu" },
      seed: 42,
      sampling: { steps: 4 },
      learning: { schedule: "constant" },
      evaluation: {},
      output: {},
    };
    expect(configHash(described as never)).toBe("f984502d83fe960e");
  });

  it.each<[string, object]>([
    ["folder", { output: { folder: "elsewhere" } }],
    ["checkpoints", { output: { checkpointEvery: 1, keep: 7, picturesEvery: 3 } }],
    ["cache", { embeddingCache: "c" }],
    ["more iterations", { iterations: 7 }],
    ["batches", { sampling: { batch: 7 }, evaluation: { batch: 3, save: 1 } }],
    ["recomputation", { learning: { recompute: "all" } }],
    ["threads", { device: { threads: 1 } }],
    ["sharding", { distributed: { sharding: "optimizer", overlap: false } }],
  ])("is the same whatever the %s", (_, over) => {
    expect(hashOf(over)).toBe(configHash(base));
  });

  it.each<[string, object]>([
    ["seed", { seed: 43 }],
    ["prompts", { prompts: ["b"] }],
    ["rewards", { rewards: [{ type: "clip", weight: 2 }] }],
    ["model", { model: { path: "m", dtype: "bf16" } }],
    ["device", { device: { name: "cuda:0" } }],
    ["steps", { sampling: { steps: 15 } }],
    ["microbatch", { learning: { microbatch: 2 } }],
    ["rate", { learning: { learningRate: 2e-5 } }],
    ["compat", { compat: { bf16Timesteps: true } }],
    ["evaluation", { evaluation: { steps: 27 } }],
    ["order of sums", { distributed: { collective: "ordered" } }],
    ["buckets", { distributed: { bucketMiB: 1 } }],
  ])("changes with the %s", (_, over) => {
    expect(hashOf(over)).not.toBe(configHash(base));
  });

  it("changes with the number of iterations when the rate falls towards them", () => {
    const linear = (iterations: number) => hashOf({ iterations, learning: { schedule: "linear" } });
    expect(linear(7)).not.toBe(linear(8));
  });
});
