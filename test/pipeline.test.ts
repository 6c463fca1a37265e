// A whole picture as diffusers' FluxPipeline makes it: noise, Euler steps, decoder; and what a pipeline folder must hold.
import { rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { EmbeddingStore } from "../lib/grpo/embeddings.js";
import { loadPipeline } from "../lib/models/pipeline.js";
import type { Pipeline } from "../lib/models/types.js";
import { type NativeTensor, native, runJob } from "../lib/native.js";
import { modulationTableSize, modulationWidth } from "../lib/sample/modulation_table.js";
import { guidanceOf, type SamplePlan, sampleBatch, samplePlan, timestepOf } from "../lib/sample/sampler.js";
import { floatInput, inputShape, readCase, readGoldens, relativeError } from "./fixtures/cases.js";
import { testDevice, testFolder } from "./support/device.js";
import { smallPipeline, writeSmallPipeline } from "./support/pipeline.js";

const device = testDevice();
const folder = testFolder();

const run = readCase("pipeline").runs[0]!;
const goldens = readGoldens("pipeline");
const golden = (name: string) => goldens.get(`${run.name}/${name}`)!;
const FORWARD = 1e-5;
const KEY = { seed: 1n, iteration: 0, prompt: 0, sample: 0, timestep: 0, purpose: 0 };

/** Embedding `row` of an input [B, ...] as a tensor [1, ...]. */
async function rowOf(name: string, row: number): Promise<NativeTensor> {
  const shape = inputShape(run, name).slice(1);
  const size = shape.reduce((product, dim) => product * dim, 1);
  const values = floatInput(run, name).slice(row * size, (row + 1) * size);
  return runJob(device.handle.upload(values, [1, ...shape]));
}

async function euler(pipeline: Pipeline, plan: SamplePlan, start: NativeTensor): Promise<NativeTensor> {
  const text = [await rowOf("prompt_embeds", 0), await rowOf("prompt_embeds", 1)];
  const pooled = [await rowOf("pooled_prompt_embeds", 0), await rowOf("pooled_prompt_embeds", 1)];
  let latents = start;
  for (let step = 0; step < plan.kinds.length; step++) {
    const result = await runJob(
      pipeline.transformer.sampleStep({
        latents: [0, 1].map((row) => ({ tensor: latents, row })),
        prompts: [0, 1],
        text,
        pooled,
        timesteps: Array(2).fill(timestepOf(plan, step)),
        guidance: guidanceOf(pipeline, plan, 2),
        gridRows: plan.grid.rows,
        gridColumns: plan.grid.columns,
        kind: plan.kinds[step]!,
        eta: 0,
        sigmas: Array(2).fill(plan.sigmas[step]!),
        nextSigmas: Array(2).fill(plan.sigmas[step + 1]!),
        denoised: false,
      }),
    );
    expect(result.logProbs).toBeUndefined();
    latents.dispose();
    latents = result.latents;
  }
  for (const tensor of [...text, ...pooled]) tensor.dispose();
  return latents;
}

/** A signal that is aborted while job number `last` waits for its turn: `occupy` gives the device something else to do before it. */
function abortedInJob(last: number, occupy: () => void): AbortSignal {
  const controller = new AbortController();
  const { signal } = controller;
  const listen = signal.addEventListener.bind(signal) as (...args: unknown[]) => void;
  let begun = 0;
  let done = 0;
  if (last === 1) occupy();
  signal.addEventListener = (...args: unknown[]) => {
    listen(...args);
    if (++begun === last) controller.abort(new Error("enough"));
  };
  signal.removeEventListener = () => {
    if (++done === last - 1) occupy();
  };
  return signal;
}

describe("sampling without noise", () => {
  it("goes from noise to picture as diffusers goes", async () => {
    const pipeline = await smallPipeline(device, join(folder, "model"));
    const [width, height] = [run.width as number, run.height as number];
    const options = {
      width,
      height,
      steps: 4,
      shift: "dynamic",
      kind: "ode",
      eta: 0.3,
      guidance: 3.5,
    } as const;
    const plan = samplePlan(pipeline, options);
    expect(relativeError(plan.sigmas, golden("sigmas").values)).toBeLessThan(1e-6);
    const { shape, values } = golden("packed_noise");
    const latents = await euler(pipeline, plan, await runJob(device.handle.upload(values, [...shape])));
    expect(
      relativeError(await runJob(latents.download()), golden("packed_latents").values),
    ).toBeLessThanOrEqual(FORWARD);
    const images = await pipeline.decode(latents, plan.grid.rows, plan.grid.columns);
    expect(images.shape).toEqual([2, 3, height, width]);
    const levels = (await runJob(images.download())).map((x) => Math.min(Math.max(x / 2 + 0.5, 0), 1));
    expect(relativeError(levels, golden("image").values)).toBeLessThanOrEqual(FORWARD);
    const bytes = await runJob(device.handle.toRgb8(images));
    const plane = height * width;
    // Interleaved bytes, rounded: half a level and what the float differs by.
    bytes.forEach((byte, i) => {
      const picture = Math.floor(i / (3 * plane));
      const place = Math.floor((i % (3 * plane)) / 3);
      const level = golden("image").values[(picture * 3 + (i % 3)) * plane + place]!;
      expect(Math.abs(byte - level * 255)).toBeLessThanOrEqual(0.501);
    });
    for (const thing of [latents, images, pipeline]) thing.dispose();
  });
});

describe("the modulations of a batch", () => {
  const rollout = async (model: string, prompts: number[], tables: boolean) => {
    using pipeline = await smallPipeline(device, join(folder, model));
    const embeddings = await pipeline.encodePrompts(["a cat", "the dog"]);
    const plan = samplePlan(pipeline, {
      ...{ width: run.width as number, height: run.height as number, steps: 5, shift: 3 },
      ...{ kind: "dance-sde", eta: 0.3, guidance: 3.5 },
    });
    const { transformer } = pipeline;
    const asked: string[] = [];
    const counting = new Proxy(transformer, {
      get: (target, name) => {
        const member = Reflect.get(target, name, target) as (...args: unknown[]) => unknown;
        return (...args: unknown[]) => {
          asked.push(String(name));
          return member.apply(target, args);
        };
      },
    });
    const strange = { ...pipeline, transformer: counting } as unknown as Pipeline;
    const level = tables ? "strict" : "run-to-run";
    Object.defineProperty(strange, "device", {
      value: Object.create(device, { determinism: { value: level }, handle: { value: device.handle } }),
    });
    using way = await sampleBatch(
      strange,
      plan,
      prompts.map((prompt, sample) => ({
        embedding: embeddings[prompt]!,
        initial: { ...KEY, prompt, sample },
        stepNoise: (step) => ({ ...KEY, prompt, sample, timestep: step + 1 }),
      })),
      { keep: true },
    );
    const pictures = [...(await runJob(way.final.download()))];
    return { asked, pictures, logProbs: way.steps.map((step) => [...step.logProbs]) };
  };

  it("are made once for all its steps, and change nothing", async () => {
    const once = await rollout("tables", [0, 1, 1], true);
    const each = await rollout("tables", [0, 1, 1], false);
    expect(once.asked).toEqual(["modulations", ...Array(5).fill("sampleStep")]);
    expect(each.asked).toEqual(Array(5).fill("sampleStep"));
    expect(once.pictures).toEqual(each.pictures);
    expect(once.logProbs).toEqual(each.logProbs);
    expect(once.logProbs.length).toBe(4);
  });

  it("are as many as a table's size is reckoned with, and none beyond the most", async () => {
    using pipeline = await smallPipeline(device, join(folder, "width"));
    const { transformer, config } = pipeline;
    using pooled = await rowOf("pooled_prompt_embeds", 0);
    const job = transformer.modulations({
      ...{ pooled: [pooled], prompts: [0, 0], timesteps: [1, 0.5] },
      guidance: config.guidanceEmbeds ? [3500, 3500] : [],
    });
    using table = await runJob(job);
    const width = modulationWidth(config);
    expect(table.shape).toEqual([2, width]);
    expect(modulationTableSize(config, 2)).toBe(2 * width);
    const most = Math.floor(2 ** 28 / 4 / width);
    expect(modulationTableSize(config, most)).toBe(most * width);
    expect(modulationTableSize(config, most + 1)).toBe(0);
  });
});

describe("a pipeline folder", () => {
  const load = (path: string) => loadPipeline(path, { device, dtype: "f32" });
  const broken = (name: string, spoil: (path: string) => void) => {
    const path = writeSmallPipeline(join(folder, name));
    spoil(path);
    return path;
  };

  it("keeps nothing of prompts when it is stopped between two of its jobs", async () => {
    using pipeline = await loadPipeline(writeSmallPipeline(join(folder, "stopped")), {
      device,
      dtype: "f32",
    });
    const store = new EmbeddingStore(pipeline);
    await store.prepare(["fig"]);
    const before = native().liveHandles();
    const works = [
      (signal: AbortSignal) => pipeline.encodePrompts(["fig", "plum"], signal),
      (signal: AbortSignal) => store.prepare(["plum"], signal),
      (signal: AbortSignal) => store.upload("fig", signal),
    ];
    for (const work of works) {
      for (let jobs = 1; jobs <= 2; jobs++) {
        const others: Promise<NativeTensor>[] = [];
        const occupy = () => void others.push(runJob(device.handle.noise([KEY], [4_000_000])));
        await expect(work(abortedInJob(jobs, occupy))).rejects.toThrow("enough");
        for (const other of await Promise.all(others)) other.dispose();
        expect(native().liveHandles()).toEqual(before);
      }
    }
  });

  it("encodes prompts until the encoders are freed, and keeps embeddings", async () => {
    const pipeline = await load(writeSmallPipeline(join(folder, "encode")));
    const [first, again, other] = await pipeline.encodePrompts(["a bad cab", "a bad cab", "fig"]);
    pipeline.freeTextEncoders();
    pipeline.freeTextEncoders();
    expect(first!.text.shape).toEqual([1, 12, 24]);
    expect(first!.pooled.shape).toEqual([1, 20]);
    const values = await runJob(first!.text.download());
    expect(await runJob(again!.text.download())).toEqual(values);
    expect(await runJob(other!.text.download())).not.toEqual(values);
    await expect(pipeline.encodePrompts(["fig"])).rejects.toMatchObject({ code: "ERR_FREED" });
    for (const embedding of [first!, again!, other!]) embedding[Symbol.dispose]();
    pipeline.dispose();
  });

  it.each([
    ["transformer", "ERR_FILE", "expected a transformer/ folder"],
    ["vae", "ERR_FILE", "expected a vae/ folder"],
    ["text_encoder/config.json", "ERR_FILE", "text_encoder/config.json"],
    ["text_encoder_2/model.safetensors", "ERR_FILE", "expected model.safetensors or its index"],
    ["tokenizer", "ERR_TOKENIZER", "tokenizer"],
    ["tokenizer_2/tokenizer.json", "ERR_TOKENIZER", "tokenizer_2"],
  ])("without %s is refused, and nothing stays on the device", async (part, code, message) => {
    const path = broken(`without-${part.replace("/", "-")}`, (root) =>
      rmSync(join(root, part), { recursive: true }),
    );
    const before = native().liveHandles();
    await expect(load(path)).rejects.toMatchObject({ code, message: expect.stringContaining(message) });
    expect(native().liveHandles()).toEqual(before);
  });

  it("is refused when its parts do not fit together, or its files are not what they should be", async () => {
    const vae = broken("vae-config", (root) => writeFileSync(join(root, "vae/config.json"), "[]"));
    await expect(load(vae)).rejects.toMatchObject({
      code: "ERR_CONFIG",
      message: expect.stringContaining("vae/config.json"),
    });
    const text = broken("not-json", (root) => writeFileSync(join(root, "transformer/config.json"), "{"));
    await expect(load(text)).rejects.toMatchObject({ code: "ERR_CONFIG" });
    const weights = broken("cut", (root) =>
      writeFileSync(join(root, "transformer/diffusion_pytorch_model.safetensors"), "abc"),
    );
    await expect(load(weights)).rejects.toMatchObject({ code: "ERR_SAFETENSORS" });
    await expect(load(join(folder, "nowhere"))).rejects.toMatchObject({ code: "ERR_FILE" });
  });

  it.each([
    ["another pipeline's", '{"_class_name": "StableDiffusionPipeline"}', "got StableDiffusionPipeline"],
    ["FLUX for another task's", '{"_class_name": "FluxFillPipeline"}', "got FluxFillPipeline"],
    ["without a class", "{}", "got undefined"],
    ["with a class that is no name", '{"_class_name": ["FluxPipeline"]}', "got a list of 1"],
  ])("is refused when its index is %s", async (name, text, got) => {
    const path = broken(`index-${name}`, (root) => writeFileSync(join(root, "model_index.json"), text));
    await expect(load(path)).rejects.toMatchObject({
      code: "ERR_CONFIG",
      message: `${join(path, "model_index.json")}: expected FluxPipeline, ${got}`,
    });
  });

  it("is refused when its index is no JSON object, or is huge", async () => {
    const index = (root: string) => join(root, "model_index.json");
    const spoils: [string, (path: string) => void, string][] = [
      ["list", (path) => writeFileSync(path, "[]"), "expected a JSON object, got a list of 0"],
      ["text", (path) => writeFileSync(path, "FLUX"), "expected JSON"],
      ["huge", (path) => truncateSync(path, 2 ** 27), `bytes, got ${2 ** 27}`],
    ];
    for (const [name, spoil, message] of spoils) {
      const path = broken(`index-${name}`, (root) => spoil(index(root)));
      const refused = await load(path).catch((error) => error);
      expect(refused).toMatchObject({ code: "ERR_CONFIG", message: expect.stringContaining(message) });
      expect(refused.message).toContain(index(path));
    }
  });

  it("needs no index", async () => {
    using pipeline = await load(broken("no-index", (root) => rmSync(join(root, "model_index.json"))));
    expect(pipeline.config.inChannels).toBeGreaterThan(0);
  });

  it("stops loading when it is told to", async () => {
    const reason = new Error("enough");
    const path = writeSmallPipeline(join(folder, "stopped"));
    const before = native().liveHandles();
    await expect(loadPipeline(path, { device, signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(native().liveHandles()).toEqual(before);
  });
});
