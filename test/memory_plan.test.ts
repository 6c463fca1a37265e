// The plan of a run's memory against what the engine really takes on the shipped model.
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { pooled, samplingPassBytes, trainingPassBytes } from "../lib/grpo/activations.js";
import type { LoraConfig, PartialConfig, TrainConfig } from "../lib/grpo/config.js";
import {
  type MemoryInputs,
  passShape,
  planMemory,
  type Sharding,
  suggestions,
} from "../lib/grpo/memory_plan.js";
import { preset } from "../lib/grpo/presets.js";
import { completeConfig } from "../lib/grpo/validate.js";
import { FLUX_DEV, loadFluxFolder, readFluxConfig } from "../lib/models/flux.js";
import { fluxTensors, isTarget, loraTensors } from "../lib/models/flux_shapes.js";
import type { WeightDType } from "../lib/models/types.js";
import type { NativeFlux, NativeOptimizer } from "../lib/native.js";
import { testDevice } from "./support/device.js";

const device = testDevice({ threads: 2 });
const TINY = new URL("../models/tiny-shapes", import.meta.url).pathname;
const flux = await readFluxConfig(join(TINY, "transformer/config.json"));
const LORA: LoraConfig = {
  rank: 4,
  alpha: 4,
  targets: ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"],
};
const ALL_LORA: LoraConfig = {
  ...LORA,
  targets: [...LORA.targets, "proj_mlp", "proj_out", "net.2", "net.0.proj"],
};
const TEXT = 24;
const SIDE = 12;
/** Between what is counted and what is measured: temporaries of an instant, and of LoRA the order of its few small tensors. */
const SHARE = 0.06;

interface Variant {
  name: string;
  dtype?: WeightDType;
  learning?: PartialConfig["learning"];
}

const VARIANTS: Variant[] = [
  { name: "all of it" },
  { name: "all of it, stored in bf16, with a running average", dtype: "bf16", learning: { emaDecay: 0.9 } },
  { name: "what the preset trains", learning: { trainable: preset("tiny-shapes").learning!.trainable! } },
  { name: "adapters on the attention", learning: { lora: LORA } },
  { name: "adapters everywhere, weights in bf16", dtype: "bf16", learning: { lora: ALL_LORA } },
];

const inputsOf = ({ dtype = "f32", learning = {} }: Variant, more: PartialConfig = {}): MemoryInputs => ({
  config: completeConfig({
    model: { path: TINY, dtype },
    prompts: ["a"],
    rewards: [{ type: "clip" }],
    ...more,
    sampling: { width: SIDE * 4, height: SIDE * 4, steps: 4, batch: 4, ...more.sampling },
    learning: { ...learning, ...more.learning },
  }),
  flux,
  textTokens: TEXT,
  others: [],
  vae: { channels: [32, 32], factor: 2 },
  world: 1,
  sharding: "none",
  deviceMemory: undefined,
});

/** The model ready to train. */
async function ready({
  dtype = "f32",
  learning = {},
}: Variant): Promise<{ model: NativeFlux; optimizer: NativeOptimizer }> {
  const { model } = await loadFluxFolder(device, join(TINY, "transformer"), dtype);
  const { lora, trainable, emaDecay = 0 } = learning as Partial<TrainConfig["learning"]>;
  const names = model.parameters().map(({ name }) => name);
  let chosen = names.filter(
    (name) => !trainable || trainable.some((pattern) => new RegExp(pattern).test(name)),
  );
  if (lora) {
    const modules = names
      .filter((name) => name.endsWith(".weight"))
      .map((name) => name.slice(0, -".weight".length))
      .filter((name) => isTarget(lora.targets, name));
    await model.addLora({ rank: lora.rank, alpha: lora.alpha, modules, seed: 1n }).promise;
    chosen = model.parameters().flatMap(({ name }) => (name.includes(".lora_") ? [name] : []));
  }
  await model.setTrainable(chosen).promise;
  const optimizer = device.handle.createOptimizer(model, {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weightDecay: 0,
    emaDecay,
  });
  await optimizer.prepare().promise;
  return { model, optimizer };
}

/** Highest use above what is there when `work` begins. */
async function rise(work: () => Promise<void>): Promise<number> {
  const before = device.memory().used;
  device.handle.resetPeakMemory();
  await work();
  return device.memory().peak - before;
}

async function measure(model: NativeFlux, rows: number, recomputeBlocks: number) {
  const tokens = SIDE * SIDE;
  const key = (row: number) => ({ seed: 1n, iteration: 0, prompt: 0, sample: row, timestep: 0, purpose: 0 });
  const keys = Array.from({ length: rows }, (_, row) => key(row));
  using latents = await device.handle.noise(keys, [tokens, flux.inChannels]).promise;
  using text = await device.handle.noise([key(0)], [TEXT, flux.jointAttentionDim]).promise;
  using pooledText = await device.handle.upload(new Float32Array(flux.pooledProjectionDim).fill(0.1), [
    1,
    flux.pooledProjectionDim,
  ]).promise;
  const all = <T>(value: T): T[] => Array(rows).fill(value);
  const step = {
    latents: keys.map((_, row) => ({ tensor: latents, row })),
    prompts: all(0),
    text: [text],
    pooled: [pooledText],
    timesteps: all(600),
    guidance: all(3500),
    gridRows: SIDE,
    gridColumns: SIDE,
    kind: "dance-sde" as const,
    sigmas: all(0.6),
    nextSigmas: all(0.5),
    eta: 0.3,
  };
  const sampling = await rise(async () => {
    const sampled = await model.sampleStep({ ...step, noise: keys, denoised: false }).promise;
    for (const tensor of Object.values(sampled)) tensor.dispose();
  });
  const training = await rise(async () => {
    using _numbers = await model.policyStep({
      ...step,
      next: step.latents,
      oldLogProbs: all(0),
      advantages: all(1),
      clipRange: 0.1,
      lossDivisor: 1,
      recomputeBlocks,
    }).promise;
  });
  return { sampling, training };
}

const within = (planned: number, measured: number, share: number, what: string) =>
  expect(Math.abs(planned / measured - 1), `${what}: planned ${planned}, measured ${measured}`).toBeLessThan(
    share,
  );

describe("the tensors of a transformer", () => {
  it("are known from its configuration", async () => {
    using model = device.handle.createFlux(flux, "f32");
    const listed = (tensors: ReturnType<typeof fluxTensors>) =>
      tensors
        .flatMap(({ parts, columns }) => parts.map(({ name, rows }) => `${name} ${rows * columns}`))
        .sort();
    const real = () =>
      model
        .parameters()
        .map(({ name, shape }) => `${name} ${shape.reduce((size, dim) => size * dim, 1)}`)
        .sort();
    expect(listed(fluxTensors(flux))).toEqual(real());
    const modules = model
      .parameters()
      .map(({ name }) => name.replace(/\.(weight|bias)$/, ""))
      .filter((name) => isTarget(ALL_LORA.targets, name));
    await model.addLora({ ...ALL_LORA, modules: [...new Set(modules)], seed: 0n }).promise;
    expect([...listed(fluxTensors(flux)), ...listed(loraTensors(flux, ALL_LORA))].sort()).toEqual(real());
  });

  it("are rounded up as the pool rounds", async () => {
    for (const count of [1, 64, 65, 1000, 12345, 65536, 65537, 300_001]) {
      await device.handle.trim().promise; // after it nothing holds the last round's tensor
      const before = device.memory().used;
      using tensor = await device.handle.upload(new Float32Array(count), [count]).promise;
      expect(device.memory().used - before, String(tensor.bytes)).toBe(pooled(count * 4));
    }
  });
});

describe.each(VARIANTS)("training $name", (variant) => {
  it("takes what was planned", async () => {
    await device.handle.trim().promise; // whatever an earlier job still held is gone after the next one
    const before = device.memory().used;
    const { model, optimizer } = await ready(variant);
    using _model = model;
    using _optimizer = optimizer;
    const { lasting } = planMemory(inputsOf(variant));
    expect(device.memory().used - before).toBe(
      lasting.weights + lasting.gradients + lasting.optimizer + lasting.average,
    );
    for (const rows of [1, 3]) {
      for (const recompute of [0, -1, 3]) {
        const inputs = inputsOf(variant);
        const measured = await measure(model, rows, recompute);
        const tokens = { imageTokens: SIDE * SIDE, textTokens: TEXT };
        const pass = passShape(inputs.config, flux, tokens, rows);
        within(samplingPassBytes(pass), measured.sampling, SHARE, `sampling ${rows}`);
        within(
          trainingPassBytes(pass, recompute),
          measured.training,
          SHARE,
          `training ${rows}, recompute ${recompute}`,
        );
      }
    }
  });
});

describe("a plan", () => {
  const GIB = 2 ** 30;
  const dev = (
    world: number,
    sharding: Sharding,
    learning: PartialConfig["learning"] = {},
  ): MemoryInputs => ({
    config: completeConfig({
      model: { path: "dev" },
      device: { name: "ascend:0" },
      prompts: ["a"],
      rewards: [{ type: "clip" }],
      learning,
    }),
    flux: FLUX_DEV,
    textTokens: 512,
    others: [
      { name: "t5", bytes: 9.1 * GIB, until: "encoded", assumed: true },
      { name: "hps", bytes: 2 * GIB, until: "end", assumed: true },
    ],
    vae: { channels: [128, 256, 512, 512], factor: 8 },
    world,
    sharding,
    deviceMemory: 64 * GIB,
  });

  it("counts FLUX.1-dev's 11.9 billion parameters and their state", () => {
    const { parameters, lasting } = planMemory(dev(1, "none"));
    expect(parameters).toEqual({ all: 11_901_408_320, trained: 11_901_408_320 });
    // The pool rounds up by 12.5 % at most.
    within(lasting.weights, parameters.all * 2, 0.03, "weights");
    within(lasting.gradients, parameters.all * 4, 0.03, "gradients");
    within(lasting.optimizer, parameters.all * 12, 0.03, "optimizer");
  });

  it("fits FLUX.1-dev on eight devices of 64 GiB when state and gradients are shared out, not before", () => {
    expect(planMemory(dev(8, "none")).fits).toBe(false);
    expect(planMemory(dev(8, "optimizer")).fits).toBe(false);
    const plan = planMemory(dev(8, "optimizer+gradients"));
    expect(plan.fits).toBe(true);
    const whole = planMemory(dev(8, "none")).lasting;
    expect(plan.lasting.gradients).toBe(Math.ceil(whole.gradients / 8));
    expect(plan.lasting.optimizer).toBe(Math.ceil(whole.optimizer / 8));
    expect(plan.lasting.weights).toBe(whole.weights);
    // Two HCCL buffers of 200 MiB, four buckets, and two of the largest gradient whole.
    const largest = 7 * 3072 * 3072 * 4;
    expect(plan.lasting.communication).toBe((2 * 200 + 4 * 25) * 2 ** 20 + 2 * largest);
    expect(plan.recompute.blocks).toBeGreaterThan(0);
    expect(plan.activations.planned).toBeLessThan(plan.activations.none);
    expect(plan.activations.planned).toBeGreaterThanOrEqual(plan.activations.all);
  });

  it("frees the text encoders before the optimizer takes its memory", () => {
    const { lasting, stages, peak, peakStage } = planMemory(
      dev(8, "optimizer+gradients", { emaDecay: 0.995 }),
    );
    expect(peakStage).not.toBe("encode");
    expect(peak).toBeGreaterThan(lasting.weights + lasting.otherModels + stages.encode);
    const huge = dev(1, "none", { lora: LORA });
    const encoders = [{ name: "t5", bytes: 500 * GIB, until: "encoded" as const, assumed: true }];
    const plan = planMemory({ ...huge, others: encoders });
    expect(plan.peakStage).toBe("encode");
    expect(plan.peak).toBe(plan.lasting.weights + 500 * GIB);
  });

  it("counts a rank's part of the pictures", () => {
    const base = dev(1, "none", { recompute: "all" });
    const config = { ...base.config, promptsPerIteration: 16 };
    const [all, eighth] = [1, 8].map((world) => planMemory({ ...base, config, world }).stages.rollout);
    const tokens = 45 * 45;
    const picture = 11 * tokens * 64 * 4 + 3 * 720 * 720 * 4; // 9 noisy steps, what goes in, the end
    expect(all! - eighth!).toBeGreaterThan(7 * 24 * picture);
    expect(all! - eighth!).toBeLessThan(7 * 24 * picture * 2);
  });

  it.each([
    ["dancegrpo-8gpu", 8],
    ["dancegrpo-16gpu", 16],
    ["dancegrpo-8gpu-lora", 8],
  ])("%s fits %i devices of 64 GiB", (name, world) => {
    const config = completeConfig({
      preset: name,
      model: { path: "dev" },
      device: { name: "ascend:0" },
      prompts: ["a"],
      rewards: [{ type: "clip" }],
    });
    const { sharding } = config.distributed;
    expect(planMemory({ ...dev(world, sharding), config }).fits).toBe(true);
  });

  it("recomputes as few blocks as fit", () => {
    const few = planMemory({ ...dev(8, "optimizer+gradients"), deviceMemory: 68 * GIB });
    const more = planMemory(dev(8, "optimizer+gradients"));
    expect(few.recompute.blocks).toBeLessThan(more.recompute.blocks);
    expect(planMemory({ ...dev(8, "optimizer+gradients"), deviceMemory: 200 * GIB }).recompute.blocks).toBe(
      0,
    );
    expect(planMemory(dev(8, "none", { recompute: 5 })).recompute).toEqual({ blocks: 5, of: 57 });
  });

  it("says what to change until it fits, each step lower than the one before", () => {
    const inputs = dev(8, "none", { recompute: "none", microbatch: 4 });
    const steps = suggestions(inputs);
    const peaks = [planMemory(inputs).peak, ...steps.map(({ peak }) => peak)];
    expect(peaks).toEqual([...peaks].sort((a, b) => b - a));
    expect(steps.map(({ change }) => change)).toEqual([
      "--sharding optimizer",
      "--sharding optimizer+gradients",
      "--set learning.recompute=all",
    ]);
    expect(steps.map(({ fits }) => fits)).toEqual([false, false, true]);
    const lora = suggestions({ ...dev(1, "none"), deviceMemory: 40 * GIB });
    expect(lora.at(-1)).toMatchObject({ change: expect.stringContaining("lora"), fits: true });
    expect(suggestions(dev(8, "optimizer+gradients"))).toEqual([]);
    expect(suggestions({ ...dev(1, "none"), deviceMemory: undefined })).toEqual([]);
  });
});
