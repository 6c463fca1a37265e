// FLUX against diffusers: velocity and the gradient of every parameter, through the product's own loading code.
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type LoadedFlux, loadFluxFile, loadFluxFolder } from "../lib/models/flux.js";
import { loadLora } from "../lib/models/lora.js";
import type { FluxInputs, NativeTensor } from "../lib/native.js";
import {
  caseNames,
  floatInput,
  type Golden,
  hasInput,
  type Run,
  readCase,
  readGoldens,
  relativeError,
} from "./fixtures/cases.js";
import { writeModel } from "./fixtures/models.js";
import { testDevice, testFolder, uploadInput } from "./support/device.js";

const device = testDevice();
const folder = testFolder();

// Relative error norms, by what is compared.
const FORWARD = 1e-5;
const GRADIENT = 1e-4;
const BF16 = 1e-2;

const f32 = Math.fround;
const times1000 = (values: Float32Array) => [...values].map((value) => f32(value * 1000));

async function inputsOf(run: Run): Promise<FluxInputs> {
  const latents = await uploadInput(device, run, "hidden_states");
  const [gridRows, gridColumns] = run.grid as [number, number];
  const batch = run.batch as number;
  return {
    latents: Array.from({ length: batch }, (_, row) => ({ tensor: latents, row })),
    prompts: Array(batch).fill(0),
    text: [await uploadInput(device, run, "encoder_hidden_states")],
    pooled: [await uploadInput(device, run, "pooled_projections")],
    timesteps: times1000(floatInput(run, "timestep")),
    guidance: hasInput(run, "guidance") ? times1000(floatInput(run, "guidance")) : [],
    gridRows,
    gridColumns,
  };
}

const numbers = (tensor: NativeTensor) => tensor.download().promise;

async function checkGradients(
  { model }: LoadedFlux,
  run: Run,
  goldens: Map<string, Golden>,
  recompute: number,
): Promise<number> {
  const names = model.parameters().map((parameter) => parameter.name);
  await model.setTrainable(names).promise;
  const inputs = await inputsOf(run);
  const dVelocity = await uploadInput(device, run, "dvelocity");
  const result = await model.velocityGradient(inputs, dVelocity, recompute).promise;
  const golden = (name: string) => goldens.get(`${run.name}/grad/${name}`)!.values;
  let worst = 0;
  for (const name of names) {
    const error = relativeError(await model.read(name, "gradient").promise, golden(name));
    expect(error, name).toBeLessThanOrEqual(GRADIENT);
    worst = Math.max(worst, error);
  }
  for (const [name, tensor] of [
    ["hidden_states", result.dLatents],
    ["encoder_hidden_states", result.dText],
  ] as const) {
    expect(relativeError(await numbers(tensor), golden(`input.${name}`)), name).toBeLessThanOrEqual(GRADIENT);
  }
  await model.zeroGradients().promise;
  return worst;
}

describe.each(caseNames("flux"))("%s", (name) => {
  const source = readCase(name);
  const goldens = readGoldens(name);
  const load = () => loadFluxFolder(device, writeModel(source, join(folder, name)), source.dtype);

  it.each(source.runs.map((run) => [run.name, run] as const))("%s: velocity", async (runName, run) => {
    const { model } = await load();
    const velocity = await numbers(await model.velocity(await inputsOf(run)).promise);
    const tolerance = source.dtype === "f32" ? FORWARD : BF16;
    expect(relativeError(velocity, goldens.get(`${runName}/velocity`)!.values)).toBeLessThanOrEqual(
      tolerance,
    );
    model.dispose();
  });

  const trained = source.runs.filter((run) => hasInput(run, "dvelocity"));
  it.each(trained.map((run) => [run.name, run] as const))(
    "%s: gradient of every parameter",
    async (_, run) => {
      const loaded = await load();
      await checkGradients(loaded, run, goldens, 0);
      await checkGradients(loaded, run, goldens, -1);
      loaded.model.dispose();
    },
  );
});

describe("layouts and storage", () => {
  const source = readCase("flux-guidance");
  const goldens = readGoldens("flux-guidance");
  const run = source.runs[1]!;
  const wanted = goldens.get(`${run.name}/velocity`)!.values;

  async function velocityOf(loaded: LoadedFlux): Promise<Float32Array> {
    const velocity = await numbers(await loaded.model.velocity(await inputsOf(run)).promise);
    loaded.model.dispose();
    return velocity;
  }

  it("reads a BFL single file, a ComfyUI checkpoint and shards: the same bits", async () => {
    const plain = await velocityOf(
      await loadFluxFolder(device, writeModel(source, join(folder, "plain")), "f32"),
    );
    expect(relativeError(plain, wanted)).toBeLessThanOrEqual(FORWARD);
    const bfl = await loadFluxFile(device, writeModel(source, join(folder, "bfl"), { layout: "bfl" }), "f32");
    expect(await velocityOf(bfl)).toEqual(plain);
    const comfy = writeModel(source, join(folder, "comfy"), {
      layout: "bfl",
      prefix: "model.diffusion_model.",
    });
    expect(await velocityOf(await loadFluxFile(device, comfy, "f32"))).toEqual(plain);
    const shards = writeModel(source, join(folder, "shards"), { shards: 3 });
    expect(await velocityOf(await loadFluxFolder(device, shards, "f32"))).toEqual(plain);
  });

  it.each(["bf16", "f16"] as const)("keeps weights in %s and computes in f32", async (dtype) => {
    const path = writeModel(source, join(folder, dtype), { dtype });
    const loaded = await loadFluxFolder(device, path, dtype);
    const widened = await loadFluxFolder(device, path, "f32");
    const velocity = await velocityOf(loaded);
    expect(velocity).toEqual(await velocityOf(widened));
    expect(relativeError(velocity, wanted)).toBeLessThanOrEqual(BF16);
  });

  it("names missing tensors and shapes that disagree with the config", async () => {
    const gone = "transformer_blocks.0.attn.to_k.weight";
    const missing = writeModel(source, join(folder, "missing"), {
      edit: (tensors) => void tensors.delete(gone),
    });
    await expect(loadFluxFolder(device, missing, "f32")).rejects.toMatchObject({
      code: "ERR_WEIGHTS",
      message: expect.stringContaining(gone),
    });
    const wide = writeModel(source, join(folder, "wide"), { config: { joint_attention_dim: 25 } });
    await expect(loadFluxFolder(device, wide, "f32")).rejects.toThrow(
      "context_embedder.weight: expected shape [32, 25] from the config, got [32, 24]",
    );
  });

  it("refuses weights that are not finite", async () => {
    const path = writeModel(source, join(folder, "nan"), {
      edit: (tensors) => {
        tensors.get("proj_out.weight")!.values[3] = Number.NaN;
      },
    });
    await expect(loadFluxFolder(device, path, "f32")).rejects.toMatchObject({ code: "ERR_WEIGHTS" });
  });
});

describe("adapters", () => {
  const source = readCase("flux-lora");
  const goldens = readGoldens("flux-lora");
  it.each(source.runs.map((run) => [run.name, run] as const))("%s: velocity", async (name, run) => {
    const loaded = await loadFluxFolder(device, writeModel(source, join(folder, "lora")), "f32");
    const file = new URL(`fixtures/${run.file}`, import.meta.url).pathname;
    await loadLora(loaded.model, loaded.config, file);
    const velocity = await numbers(await loaded.model.velocity(await inputsOf(run)).promise);
    expect(relativeError(velocity, goldens.get(`${name}/velocity`)!.values)).toBeLessThanOrEqual(FORWARD);
    loaded.model.dispose();
  });
});
