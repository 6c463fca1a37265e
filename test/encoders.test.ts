// Text encoders, CLIP and the autoencoder against transformers, open_clip and diffusers, through the loaders and the door.
//
// Legend: B pictures, C latent channels, h w latent grid.
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { loadClipFolder, loadOpenClip } from "../lib/models/clip.js";
import { loadClipText, loadT5 } from "../lib/models/encoders.js";
import { type LoadedVae, loadVaeFile, loadVaeFolder } from "../lib/models/vae.js";
import type { ImagePreprocess, NativeTensor, NativeTextEncoder } from "../lib/native.js";
import { CLIP_MEAN, CLIP_STD } from "../lib/rewards/processor.js";
import {
  type Case,
  caseNames,
  floatInput,
  type Golden,
  inputShape,
  integerInput,
  type Run,
  readCase,
  readGoldens,
  relativeError,
} from "./fixtures/cases.js";
import { type ModelOptions, writeModel } from "./fixtures/models.js";
import { testDevice, testFolder, uploadInput } from "./support/device.js";

const device = testDevice();
const folder = testFolder();

// Relative error norms of a forward pass, by what the weights are stored in.
const TOLERANCE = { f32: 1e-5, bf16: 1e-2, f16: 1e-2 } as const;

async function numbers(tensor: NativeTensor): Promise<Float32Array> {
  const values = await tensor.download().promise;
  tensor.dispose();
  return values;
}

const named = (source: Case) => source.runs.map((run) => [run.name, run] as const);

class Goldens {
  readonly #goldens: Map<string, Golden>;
  readonly #run: Run;
  constructor(name: string, run: Run) {
    this.#goldens = readGoldens(name);
    this.#run = run;
  }
  expect(output: string, actual: ArrayLike<number>, tolerance: number): void {
    const { values } = this.#goldens.get(`${this.#run.name}/${output}`)!;
    expect(relativeError(actual, values), output).toBeLessThanOrEqual(tolerance);
  }
}

function encode(model: NativeTextEncoder, run: Run, input = "input_ids") {
  return model.encode(integerInput(run, input), inputShape(run, input)[0]!).promise;
}

type EncoderLoader = typeof loadT5;

async function checkEncoder(
  load: EncoderLoader,
  name: string,
  run: Run,
  options: ModelOptions = {},
): Promise<Float32Array> {
  const source = readCase(name);
  const goldens = new Goldens(name, run);
  const path = writeModel(source, join(folder, `${name}-${JSON.stringify(options).length}`), options);
  const model = await load(device, path, source.dtype);
  const { hidden, pooled } = await encode(model, run);
  model.dispose();
  const values = await numbers(hidden);
  goldens.expect("last_hidden_state", values, TOLERANCE[source.dtype]);
  if (pooled) goldens.expect("pooled", await numbers(pooled), TOLERANCE[source.dtype]);
  return values;
}

describe.each(caseNames("t5"))("%s", (name) => {
  it.each(named(readCase(name)))("%s", async (_, run) => {
    await checkEncoder(loadT5, name, run);
  });
});

describe("a T5 folder", () => {
  const source = readCase("t5");
  const run = source.runs[0]!;

  it("may hold the embedding twice, or in shards: the same bits", async () => {
    const plain = await checkEncoder(loadT5, "t5", run);
    expect(await checkEncoder(loadT5, "t5", run, { tiedCopy: true })).toEqual(plain);
    expect(await checkEncoder(loadT5, "t5", run, { shards: 2 })).toEqual(plain);
  });

  it("may hold the embedding under the encoder's name alone", async () => {
    const path = writeModel(source, join(folder, "t5-embed"), {
      tiedCopy: true,
      edit: (tensors) => void tensors.delete("shared.weight"),
    });
    const model = await loadT5(device, path, "f32");
    const { hidden } = await encode(model, run);
    new Goldens("t5", run).expect("last_hidden_state", await numbers(hidden), TOLERANCE.f32);
    model.dispose();
  });

  it("is refused when it is T5 v1.0, or has no config", async () => {
    const old = writeModel(source, join(folder, "t5-old"), { config: { feed_forward_proj: "relu" } });
    await expect(loadT5(device, old, "f32")).rejects.toThrow(
      'feed_forward_proj: expected "gated-gelu" (T5 v1.1), got "relu"',
    );
    await expect(loadT5(device, join(folder, "nowhere"), "f32")).rejects.toMatchObject({ code: "ERR_FILE" });
  });

  it("is refused, with a message, when a number of its config cannot be", async () => {
    for (const config of [{ num_heads: 0 }, { d_model: -24 }, { num_layers: 1.5 }, { vocab_size: 2 ** 40 }]) {
      const path = writeModel(source, join(folder, "t5-odd"), { config });
      await expect(loadT5(device, path, "f32"), JSON.stringify(config)).rejects.toMatchObject({
        code: "ERR_CONFIG",
        message: expect.stringContaining(Object.keys(config)[0]!),
      });
    }
  });

  it("answers a token that the model does not know with an error", async () => {
    const model = await loadT5(device, writeModel(source, join(folder, "t5-ids")), "f32");
    for (const ids of [[50], [-1], [2 ** 31 - 1]]) {
      await expect(model.encode(Int32Array.from(ids), 1).promise, String(ids)).rejects.toMatchObject({
        code: /^ERR_/,
      });
    }
    model.dispose();
  });
});

describe.each(caseNames("clip-text"))("%s", (name) => {
  it.each(named(readCase(name)))("%s", async (_, run) => {
    const prefixed = await checkEncoder(loadClipText, name, run);
    expect(await checkEncoder(loadClipText, name, run, { unprefixed: true })).toEqual(prefixed);
  });
});

describe.each(caseNames("clip"))("%s", (name) => {
  it.each(named(readCase(name)))("%s: both towers", async (_, run) => {
    const goldens = new Goldens(name, run);
    const clip = await loadClipFolder(device, writeModel(name, join(folder, name)), "f32");
    const { hidden, projected } = await encode(clip.model, run);
    const pixels = await uploadInput(device, run, "pixel_values");
    const images = await clip.model.encodeImages(pixels, "pixelValues").promise;
    const cosines = await clip.model.cosine(images, projected!, [1, 0, 1]).promise;
    const all = readGoldens(name).get(`${run.name}/cosine`)!.values;
    expect(relativeError(cosines, [all[1]!, all[2]!, all[5]!])).toBeLessThanOrEqual(TOLERANCE.f32);
    goldens.expect("text_features", await numbers(projected!), TOLERANCE.f32);
    goldens.expect("image_features", await numbers(images), TOLERANCE.f32);
    for (const thing of [hidden, pixels, clip.model]) thing.dispose();
  });
});

describe.each(caseNames("open-clip"))("%s", (name) => {
  const source = readCase(name);
  const path = writeModel(source, join(folder, name));
  const own = join(path, "open_clip_model.safetensors");
  const file = source.checkpoint ? new URL(`fixtures/${source.checkpoint}`, import.meta.url).pathname : own;
  const run = source.runs.find((entry) => entry.name === "pixels")!;

  it.each(["f32", "bf16", "f16"] as const)("features with weights stored in %s", async (dtype) => {
    const goldens = new Goldens(name, run);
    const { model } = await loadOpenClip(device, file, join(path, "open_clip_config.json"), dtype);
    // f16 weights are exact in f32 and in f16.
    const tolerance = dtype === source.dtype ? TOLERANCE.f32 : TOLERANCE[dtype];
    const { projected, hidden } = await encode(model, run, "text");
    const pixels = await uploadInput(device, run, "pixel_values");
    goldens.expect("text_features", await numbers(projected!), tolerance);
    goldens.expect(
      "image_features",
      await numbers(await model.encodeImages(pixels, "pixelValues").promise),
      tolerance,
    );
    for (const thing of [hidden, pixels, model]) thing.dispose();
  });
});

describe("pictures for a scorer", () => {
  const goldens = readGoldens("resize-float");
  const runs = readCase("resize-float").runs.filter((run) => run.size === 28);
  const statistics = { mean: [...CLIP_MEAN], std: [...CLIP_STD] };
  const MODES = { "max-pad": "hps_pixels", "short-crop": "shortest_side" } as const;

  /** What the model should see: the golden, normalised unless it is already. */
  function wanted(run: Run, mode: keyof typeof MODES): Float32Array {
    const { values } = goldens.get(`${run.name}/${MODES[mode]}`)!;
    const channel = (i: number) => Math.floor(i / 784);
    return mode === "max-pad"
      ? values
      : values.map((x, i) => (x - CLIP_MEAN[channel(i)]!) / CLIP_STD[channel(i)]!);
  }

  // A rounding step in between would make the comparison blind to the last digits.
  const preprocess = (mode: keyof typeof MODES): ImagePreprocess => ({
    size: 28,
    mode,
    quantize: false,
    ...statistics,
  });

  const cases = runs.flatMap((run) =>
    Object.keys(MODES).map((mode) => [run.name, mode as keyof typeof MODES, run] as const),
  );
  // open_clip forgets to pad a picture whose longest side fits already, and its model then refuses it; ours pads.
  const usable = cases.filter(([name, mode]) => name !== "exact-to-28" || mode !== "max-pad");

  it.each(usable)("%s, %s: as torchvision prepares them", async (_, mode, run) => {
    const path = writeModel("open-clip", join(folder, "resize"));
    const config = join(path, "open_clip_config.json");
    const { model } = await loadOpenClip(device, join(path, "open_clip_model.safetensors"), config, "f32");
    const shape = [1, ...inputShape(run, "picture")];
    const picture = await device.handle.upload(
      floatInput(run, "picture").map((x) => x * 2 - 1),
      shape,
    ).promise;
    const pixels = await device.handle.upload(wanted(run, mode), [1, 3, 28, 28]).promise;
    const seen = await numbers(await model.encodeImages(picture, preprocess(mode)).promise);
    expect(
      relativeError(seen, await numbers(await model.encodeImages(pixels, "pixelValues").promise)),
    ).toBeLessThan(1e-5);
    for (const thing of [picture, pixels, model]) thing.dispose();
  });
});

/** [B, C, h, w] -> [B, h/2 * w/2, 4 C]: each token a 2 x 2 patch, channel first. */
function packed(
  values: ArrayLike<number>,
  [batch, channels, height, width]: readonly number[],
): Float32Array {
  const [rows, columns] = [height! / 2, width! / 2];
  const result = new Float32Array(values.length);
  let next = 0;
  for (let b = 0; b < batch!; b++)
    for (let token = 0; token < rows * columns; token++)
      for (let c = 0; c < channels!; c++)
        for (let corner = 0; corner < 4; corner++) {
          const y = 2 * Math.floor(token / columns) + (corner >> 1);
          const x = 2 * (token % columns) + (corner & 1);
          result[next++] = values[((b * channels! + c) * height! + y) * width! + x]!;
        }
  return result;
}

describe.each(caseNames("autoencoder"))("%s", (name) => {
  const source = readCase(name);
  const layouts: [string, () => Promise<LoadedVae>][] = [
    ["diffusers", () => loadVaeFolder(device, writeModel(source, join(folder, name)), source.dtype)],
  ];
  // BFL's files have no quant convolutions.
  if (!source.config.use_quant_conv) {
    const write = () => writeModel(source, join(folder, `${name}-bfl`), { layout: "bfl" });
    layouts.push(["BFL", () => loadVaeFile(device, write(), source.dtype)]);
  }
  const cases = layouts.flatMap(([layout, load]) =>
    source.runs.map((run) => [layout, run.name, load, run] as const),
  );

  it.each(cases)("%s layout, %s", async (_layout, _name, load, run) => {
    const { model } = await load();
    const goldens = new Goldens(name, run);
    const decodes = run.part === "decoder";
    const input = await uploadInput(device, run, decodes ? "latents" : "image");
    const output = await (decodes ? model.decodeRaw(input) : model.encodeRaw(input)).promise;
    goldens.expect(decodes ? "image" : "moments", await numbers(output), TOLERANCE[source.dtype]);
    for (const thing of [input, model]) thing.dispose();
  });
});

describe("packed latents", () => {
  const source = readCase("autoencoder");
  const { scaling_factor: scaling, shift_factor: shift } = source.config as Record<string, number>;

  it("are unpacked, unscaled and decoded", async () => {
    const { model } = await loadVaeFolder(device, writeModel(source, join(folder, "packed")), "f32");
    const run = source.runs.find((entry) => entry.name === "decode-4x4-batch2")!;
    const z = floatInput(run, "latents");
    const scaled = packed(z, [2, 4, 4, 4]).map((x) => (x - shift!) * scaling!);
    const latents = await device.handle.upload(scaled, [2, 4, 16]).promise;
    const images = await model.decode(latents, 2, 2).promise;
    expect(images.shape).toEqual([2, 3, 16, 16]);
    new Goldens("autoencoder", run).expect("image", await numbers(images), TOLERANCE.f32);
    await expect(model.decode(latents, 3, 2).promise).rejects.toMatchObject({ code: "ERR_SHAPE" });
    for (const thing of [latents, model]) thing.dispose();
  });

  it("come from pictures: the mean, scaled and packed", async () => {
    const { model } = await loadVaeFolder(device, writeModel(source, join(folder, "packed")), "f32");
    const run = source.runs.find((entry) => entry.name === "encode-16x16-batch2")!;
    const { values, shape } = readGoldens("autoencoder").get(`${run.name}/mode`)!;
    const images = await uploadInput(device, run, "image");
    const latents = await numbers(await model.encode(images).promise);
    const wanted = packed(values, shape).map((x) => (x - shift!) * scaling!);
    expect(relativeError(latents, wanted)).toBeLessThanOrEqual(TOLERANCE.f32);
    for (const thing of [images, model]) thing.dispose();
  });
});
