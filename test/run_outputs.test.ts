// What a run leaves behind: exports, embeddings on disk, steady memory; and where its window stands.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { EmbeddingStore } from "../lib/grpo/embeddings.js";
import type { TrainerOptions } from "../lib/grpo/trainer.js";
import { loadFluxFolder } from "../lib/models/flux.js";
import { loadLora } from "../lib/models/lora.js";
import { type FluxInputs, type NativeFlux, native, runJob } from "../lib/native.js";
import { testDevice, testFolder } from "./support/device.js";
import { smallPipeline } from "./support/pipeline.js";
import { brightness, endOf, PROMPTS, SHORT, shortRun } from "./support/training.js";

const device = testDevice({ threads: 2 });
const folder = testFolder();
const model = join(folder, "model");
let runs = 0;
const newRun = () => join(folder, `run${runs++}`);

const train = (
  run: string,
  options: Partial<TrainerOptions> = {},
  more: Parameters<typeof shortRun>[3] = {},
) => shortRun(device, { model, run }, options, more);

// The uninterrupted run that others are compared with.
let wholeRun: Promise<string> | undefined;
function whole(): Promise<string> {
  wholeRun ??= (async () => {
    const run = newRun();
    await train(run);
    return run;
  })();
  return wholeRun;
}

async function velocityOf(transformer: NativeFlux): Promise<Float32Array> {
  const ramp = (shape: number[]) => {
    const count = shape.reduce((product, dim) => product * dim, 1);
    return runJob(
      device.handle.upload(
        Float32Array.from({ length: count }, (_, i) => Math.sin(i)),
        shape,
      ),
    );
  };
  const [latents, text, pooled] = [await ramp([1, 6, 16]), await ramp([1, 5, 24]), await ramp([1, 20])];
  const inputs: FluxInputs = {
    latents: [{ tensor: latents, row: 0 }],
    prompts: [0],
    text: [text],
    pooled: [pooled],
    timesteps: [700],
    guidance: [3500],
    gridRows: 2,
    gridColumns: 3,
  };
  const velocity = await runJob(transformer.velocity(inputs));
  const values = await runJob(velocity.download());
  for (const tensor of [latents, text, pooled, velocity]) tensor.dispose();
  return values;
}

describe("exports", () => {
  it("of the whole model load again, to the same bits", async () => {
    const run = await whole();
    const { model: trained } = await loadFluxFolder(device, join(run, "final/transformer"), "f32");
    const fresh = await smallPipeline(device, model);
    const velocity = await velocityOf(trained);
    expect(velocity).not.toEqual(await velocityOf(fresh.transformer));
    // What was trained is what was written: the optimizer's masters are the file's numbers.
    const state = join(run, "checkpoints/000003/optimizer.safetensors");
    const file = join(run, "final/transformer/diffusion_pytorch_model.safetensors");
    for (const { name } of trained.parameters()) {
      expect(native().readTensor(file, name).values, name).toEqual(
        native().readTensor(state, `${name}.master`).values,
      );
    }
    for (const thing of [trained, fresh]) thing.dispose();
  });

  it("of an adapter load again with the velocity that it had", async () => {
    const run = newRun();
    const pipeline = await smallPipeline(device, model);
    const { GrpoTrainer } = await import("../lib/grpo/trainer.js");
    const lora = { rank: 2, alpha: 6, targets: ["to_q", "to_out.0", "proj_mlp"] };
    const learning = { ...SHORT.learning, lora };
    const trainer = new GrpoTrainer({
      ...SHORT,
      prompts: PROMPTS,
      reward: brightness,
      learning,
      pipeline,
      output: { folder: run },
    });
    for await (const _ of trainer.run());
    const wanted = await velocityOf(pipeline.transformer);
    pipeline.dispose();
    const fresh = await smallPipeline(device, model);
    const base = await velocityOf(fresh.transformer);
    expect(wanted).not.toEqual(base);
    const modules = await loadLora(
      fresh.transformer,
      fresh.config,
      join(run, "final/pytorch_lora_weights.safetensors"),
    );
    expect(modules.sort()).toEqual([
      "single_transformer_blocks.0.attn.to_q",
      "single_transformer_blocks.0.proj_mlp",
      "transformer_blocks.0.attn.to_out.0",
      "transformer_blocks.0.attn.to_q",
    ]);
    const loaded = await velocityOf(fresh.transformer);
    // Folding alpha into B moves last bits only.
    for (const [i, value] of loaded.entries()) {
      expect(Math.abs(value - wanted[i]!)).toBeLessThanOrEqual(1e-5 * Math.max(1, Math.abs(wanted[i]!)));
    }
    fresh.dispose();
  });

  it("are the running average when there is one", async () => {
    const run = newRun();
    await train(run, { learning: { ...SHORT.learning, emaDecay: 0.9 } });
    const state = join(run, "checkpoints/000003/optimizer.safetensors");
    const file = join(run, "final/transformer/diffusion_pytorch_model.safetensors");
    const read = (path: string, name: string) => native().readTensor(path, name).values;
    const name = "transformer_blocks.0.attn.to_q.weight";
    expect(read(file, name)).toEqual(read(state, `${name}.average`));
    expect(read(file, name)).not.toEqual(read(state, `${name}.master`));
  });
});

describe("windows", () => {
  it.each(["progressive", "random", "fixed"] as const)(
    "%s: only noisy steps are learned from",
    async (strategy) => {
      const sampling = { ...SHORT.sampling, steps: 5, window: { size: 2, stride: 1, interval: 1, strategy } };
      const metrics = await train(newRun(), {
        sampling,
        learning: { ...SHORT.learning, timestepFraction: 1 },
      });
      for (const { ratio, gradientNorm } of metrics) {
        expect(ratio.firstUpdateMaxDeviation).toBe(0);
        expect(gradientNorm).toBeGreaterThan(0);
      }
    },
  );
});

describe("embeddings on disk", () => {
  const cached = () => readdirSync(join(folder, "cache"));

  it("are computed once, and used by later runs to the same bits", async () => {
    const embeddingCache = join(folder, "cache");
    const run = newRun();
    const encoded: number[] = [];
    await train(run, { embeddingCache });
    expect(cached()).toHaveLength(3);
    const pipeline = await smallPipeline(device, model);
    const store = new EmbeddingStore(pipeline, embeddingCache);
    pipeline.freeTextEncoders(); // so that encoding again would fail
    const prompts = PROMPTS.slice(0, 0);
    for (const name of PROMPTS) {
      const there = await store.upload(name).then(
        (embedding) => embedding,
        () => undefined,
      );
      if (there) prompts.push(name);
      there?.[Symbol.dispose]();
    }
    expect(prompts).toHaveLength(3);
    await store.prepare(prompts, undefined, (done) => encoded.push(done));
    expect(encoded).toEqual([1, 2, 3]);
    pipeline.dispose();
    expect(endOf(run)).toEqual(endOf(await whole()));
  });

  it("that are damaged are refused by name", async () => {
    const embeddingCache = join(folder, "damaged");
    const run = newRun();
    await train(run, { embeddingCache, iterations: 1 });
    const [name] = readdirSync(embeddingCache);
    const path = join(embeddingCache, name!);
    const good = readFileSync(path);
    const header = good.indexOf(10);
    const damaged: [string, Buffer][] = [
      ["no header", Buffer.from("x")],
      ["a header that is not JSON", Buffer.from("{\n")],
      ["shapes that do not fit", good.subarray(0, good.length - 4)],
      ["bytes too many", Buffer.concat([good, Buffer.from([0])])],
      [
        "shapes that do not fit",
        Buffer.concat([Buffer.from('{"text":[1,-1],"pooled":[1]}'), good.subarray(header)]),
      ],
      [
        "shapes that do not fit",
        Buffer.concat([Buffer.from('{"text":[1e300],"pooled":[1]}'), good.subarray(header)]),
      ],
      ["shapes that do not fit", Buffer.concat([Buffer.from("null"), good.subarray(header)])],
    ];
    for (const [what, bytes] of damaged) {
      writeFileSync(path, bytes);
      const refused = train(newRun(), { embeddingCache, iterations: 1 });
      await expect(refused, what).rejects.toMatchObject({
        code: "ERR_FILE",
        message: expect.stringContaining(what),
      });
    }
  });
});

describe("memory of a run", () => {
  it("has text encoders or the optimizer's state, not both", async () => {
    const pipeline = await smallPipeline(device, model);
    const loaded = device.memory().used;
    const { GrpoTrainer } = await import("../lib/grpo/trainer.js");
    const trainer = new GrpoTrainer({
      ...SHORT,
      iterations: 1,
      prompts: PROMPTS,
      reward: brightness,
      pipeline,
      output: { folder: newRun() },
    });
    const state = pipeline.transformer
      .parameters()
      .reduce((sum, { shape }) => sum + shape.reduce((product, dim) => product * dim, 4), 0);
    let encoding = 0;
    let later = 0;
    const onProgress = ({ stage }: { stage: string }) => {
      const { used } = device.memory();
      if (stage === "encode") encoding = Math.max(encoding, used);
      if (stage === "rollout") later = Math.max(later, used);
    };
    for await (const _ of trainer.run({ onProgress }));
    pipeline.dispose();
    // Gradients and two moments: three times the weights, which are f32.
    expect(encoding).toBeLessThan(loaded + state);
    expect(later).toBeGreaterThan(encoding);
  });

  it("is taken once: later iterations ask the system for nothing", async () => {
    const counts: number[] = [];
    const learning = { ...SHORT.learning, emaDecay: 0.9 };
    const own = testDevice({ threads: 2 });
    const on = { onIteration: () => counts.push(own.memory().systemAllocations) };
    await shortRun(own, { model, run: newRun() }, { iterations: 5, learning }, on as never);
    expect(counts).toHaveLength(5);
    expect(new Set(counts).size, counts.join(" ")).toBe(1);
  });
});
