// The CLIP family of rewards: parity with Pillow, transformers and open_clip, and the loading of real folders.
import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { crc32 } from "../lib/image/crc32.js";
import { type LoadedClip, loadClipFolder, loadOpenClip } from "../lib/models/clip.js";
import { type NativeTensor, native } from "../lib/native.js";
import { processedImageEncoder } from "../lib/rewards/clip.js";
import { ClipReward, storageOf } from "../lib/rewards/clip_scorer.js";
import { roundToF16 } from "../lib/rewards/half.js";
import { hpsImageEncoder } from "../lib/rewards/hps.js";
import { loadReward, type RewardConfig } from "../lib/rewards/index.js";
import { resizePillow } from "../lib/rewards/pillow.js";
import { clipProcessor, fitted, pixelValues, readProcessor } from "../lib/rewards/processor.js";
import { scoreRequest } from "../lib/rewards/scorer.js";
import {
  caseNames,
  floatInput,
  inputShape,
  integerInput,
  type Run,
  readCase,
  readGoldens,
  relativeError,
} from "./fixtures/cases.js";
import { writeModel } from "./fixtures/models.js";
import { testDevice, testFolder, uploadInput } from "./support/device.js";
import { disc, flat, interleavedToPlanar, pictureOf, requestOf, upload } from "./support/pictures.js";
import { writeClipTokenizer } from "./support/pipeline.js";

const device = testDevice();
const folder = testFolder();

// Relative error norms: f32 models against f64 references; f16 weights are exact in f32.
const FORWARD = 1e-5;

/** A tokenizer that knows the prompts "0", "1", ...: the rows of a golden. */
const goldenTokenizer = (run: Run, input: string) => {
  const ids = integerInput(run, input);
  const length = inputShape(run, input)[1]!;
  return {
    encode: (texts: string | readonly string[]) =>
      Int32Array.from(
        [texts]
          .flat()
          .flatMap((text) => [...ids.subarray(Number(text) * length, (Number(text) + 1) * length)]),
      ),
  };
};

describe("Pillow's resize", () => {
  const source = readCase("resize-pillow");
  const goldens = readGoldens("resize-pillow");

  it.each(source.runs.map((run) => [run.name, run] as const))("%s: byte for byte", (name, run) => {
    const picture = pictureOf(run, "picture");
    // The goldens' pictures came from the same formula; were the bytes others, nothing else would say so.
    expect(crc32(picture.data)).toBe(run.picture_crc32);
    const size = run.size as number;
    const processor = clipProcessor(size);
    const seen = fitted(picture, processor);
    expect([seen.width, seen.height]).toEqual([size, size]);
    const bytes = interleavedToPlanar(seen);
    const pixels = pixelValues([picture], processor);
    expect(crc32(Uint8Array.from(bytes))).toBe(run.resized_crc32);
    const whole = goldens.get(`${name}/pixel_values`);
    if (whole) {
      expect(relativeError(pixels, whole.values)).toBeLessThan(1e-6);
      return;
    }
    const { step } = (run.sampled as Record<string, { step: number }>).pixel_values!;
    const values = goldens.get(`${name}/pixel_values.samples`)!.values;
    expect(
      relativeError(
        Array.from(values, (_, i) => pixels[i * step]!),
        values,
      ),
    ).toBeLessThan(1e-6);
  });

  it("leaves a picture alone that fits", () => {
    const picture = flat([1, 2, 3]);
    expect(resizePillow(picture, 8, 8)).toBe(picture);
  });

  it("puts a black frame around a picture that is smaller than the crop", () => {
    const seen = fitted(flat([9, 9, 9], 4, 4), { ...clipProcessor(6), shortestEdge: 4 });
    expect([...seen.data.subarray(0, 3)]).toEqual([0, 0, 0]);
    expect(seen.data.filter((byte) => byte === 9)).toHaveLength(4 * 4 * 3);
  });
});

describe("preprocessor_config.json", () => {
  const write = (name: string, value: unknown) => {
    const path = join(folder, name);
    mkdirSync(path, { recursive: true });
    writeFileSync(join(path, "preprocessor_config.json"), JSON.stringify(value));
    return path;
  };

  it("is read in both spellings of a size, and may be missing", async () => {
    const plain = write("plain", { size: 24, crop_size: 20, image_mean: [0, 0, 0], image_std: [1, 1, 1] });
    expect(await readProcessor(plain, 20)).toEqual({
      shortestEdge: 24,
      crop: 20,
      mean: [0, 0, 0],
      std: [1, 1, 1],
    });
    const objects = write("objects", { size: { shortest_edge: 20 }, crop_size: { height: 20, width: 20 } });
    expect(await readProcessor(objects, 20)).toEqual(clipProcessor(20));
    expect(await readProcessor(join(folder, "nowhere"), 20)).toEqual(clipProcessor(20));
  });

  it("is refused when it asks for something that is done otherwise", async () => {
    await expect(readProcessor(write("bilinear", { resample: 2 }), 20)).rejects.toThrow(
      "resample: expected 3, got 2",
    );
    await expect(readProcessor(write("other", { crop_size: 24 }), 20)).rejects.toThrow(
      "crop_size: expected 20, got 24",
    );
    await expect(readProcessor(write("mean", { image_mean: [0, 0] }), 20)).rejects.toThrow(
      "image_mean: expected 3 numbers",
    );
  });
});

/** Cosine [images, texts] of a golden, for image i and text rows[i]. */
const goldenCosines = (cosine: Float32Array, texts: number, rows: number[]): number[] =>
  rows.map((row, image) => cosine[image * texts + row]!);

describe.each(caseNames("clip"))("%s", (name) => {
  const run = readCase(name).runs[0]!;
  const goldens = readGoldens(name);
  const golden = (output: string) => goldens.get(`${run.name}/${output}`)!.values;
  const rows = [1, 0, 1];

  async function loaded(): Promise<LoadedClip> {
    return loadClipFolder(device, writeModel(name, join(folder, name)), "f32");
  }

  /** The golden's pixel values in the pictures' place. */
  async function rewardOf(clip: LoadedClip, score?: (cosine: number) => number) {
    const pixels = await uploadInput(device, run, "pixel_values");
    return new ClipReward({
      name: "clip",
      device,
      clip,
      tokenizer: goldenTokenizer(run, "input_ids"),
      encodeImages: () => clip.model.encodeImages(pixels, "pixelValues").promise,
      ...(score ? { score } : {}),
    });
  }

  it("scores what transformers scores", async () => {
    using reward = await rewardOf(await loaded());
    using request = await requestOf(device, [flat([0, 0, 0])], []);
    const scores = await reward.score({ ...request, prompts: rows.map(String) });
    expect(relativeError(scores, goldenCosines(golden("cosine"), 2, rows))).toBeLessThan(FORWARD);
  });

  it("scores with the logit scale when asked", async () => {
    const clip = await loaded();
    using reward = await rewardOf(clip, (cosine) => cosine * clip.logitScale);
    using request = await requestOf(device, [flat([0, 0, 0])], []);
    const scores = await reward.score({ ...request, prompts: rows.map(String) });
    expect(relativeError(scores, goldenCosines(golden("logits_per_image"), 2, rows))).toBeLessThan(FORWARD);
  });
});

describe.each(caseNames("open-clip"))("%s", (name) => {
  const source = readCase(name);
  const run = source.runs.find((entry) => entry.name === "pictures")!;
  const goldens = readGoldens(name);
  const golden = (output: string) => goldens.get(`${run.name}/${output}`)!.values;

  async function loaded(): Promise<LoadedClip> {
    const path = writeModel(name, join(folder, name));
    const published = source.checkpoint
      ? new URL(`./fixtures/${source.checkpoint}`, import.meta.url).pathname
      : undefined;
    const file = published ?? join(path, "open_clip_model.safetensors");
    return loadOpenClip(device, file, join(path, "open_clip_config.json"), storageOf(file));
  }

  it.each(["square", "wide"] as const)("%s: as open_clip scores it", async (picture) => {
    const clip = await loaded();
    const index = picture === "square" ? 0 : 1;
    const [, height, width] = inputShape(run, picture) as [number, number, number];
    const values = floatInput(run, picture).map((value) => value * 2 - 1);
    const images = await device.handle.upload(values, [1, 3, height, width]).promise;
    const preprocess = {
      size: 28,
      mode: "max-pad",
      mean: clipProcessor(28).mean,
      std: clipProcessor(28).std,
    } as const;
    const tokenizer = goldenTokenizer(run, "text");
    const rewardWith = (encode: ConstructorParameters<typeof ClipReward>[0]["encodeImages"]) =>
      new ClipReward({ name: "hps", device, clip, tokenizer, encodeImages: encode });
    const score = async (reward: ClipReward, tensor: NativeTensor) => [
      ...(await reward.score(scoreRequest(device.handle, tensor, ["0"], 0))),
      ...(await reward.score(scoreRequest(device.handle, tensor, ["1"], 0))),
    ];
    const unrounded = rewardWith(
      ({ images: tensor }) => clip.model.encodeImages(tensor, { ...preprocess, quantize: false }).promise,
    );
    const wanted = [...golden("cosine").subarray(index * 2, index * 2 + 2)];
    expect(relativeError(await score(unrounded, images), wanted)).toBeLessThan(FORWARD);

    // What the reward itself does is the same on the picture as it comes back from a PNG.
    const reward = rewardWith(hpsImageEncoder(clip));
    const rounded = await upload(device, [pictureOf(run, picture)]);
    const fromFile = await score(unrounded, rounded);
    expect(relativeError(await score(reward, images), fromFile)).toBeLessThan(FORWARD);
    expect(relativeError(fromFile, wanted)).toBeLessThan(0.05);
    reward.dispose();
  });
});

const TINY = new URL("../models/tiny-shapes", import.meta.url).pathname;
const RED = [220, 30, 30] as const;
const BLUE = [40, 60, 220] as const;

describe("hps-v2.1", () => {
  const pictures = [disc(RED, [255, 255, 255]), disc(BLUE, [0, 0, 0])];

  /** A folder as HPSv2 is published, but small: the checkpoint under its name; a vocabulary in `tokenizer/` when told. */
  function publish(name: string, vocabulary: boolean): string {
    const path = join(folder, name);
    mkdirSync(path, { recursive: true });
    const checkpoint = new URL("./fixtures/hps-small.pt", import.meta.url).pathname;
    copyFileSync(checkpoint, join(path, "HPS_v2.1_compressed.pt"));
    writeFileSync(join(path, "open_clip_config.json"), JSON.stringify(readCase("open-clip-f16").config));
    if (vocabulary) writeClipTokenizer(join(path, "tokenizer"));
    return path;
  }

  it("is loaded from its folder or its file, with the vocabulary beside it or the pipeline's", async () => {
    const path = publish("hps", true);
    const bare = publish("hps-bare", false);
    const file = join(path, "HPS_v2.1_compressed.pt");
    using request = await requestOf(device, pictures, ["a bad cab", "plum"]);
    const scores: number[][] = [];
    for (const [place, vocabularies] of [
      [path, []],
      [file, []],
      [bare, [path]],
    ] as const) {
      using reward = await loadReward(
        { type: "hps-v2.1", path: place },
        { device, vocabularies: [...vocabularies] },
      );
      scores.push(Array.from(await reward.score(request)));
    }
    expect(scores[1]).toEqual(scores[0]);
    expect(scores[2]).toEqual(scores[0]);
    expect(scores[0]!.every((score) => Math.abs(score) <= 1)).toBe(true);
    expect(scores[0]![0]).not.toBe(scores[0]![1]);
  });

  it("rounds scores to half precision when asked, as under autocast", async () => {
    const path = publish("hps-rounded", true);
    using request = await requestOf(device, pictures, ["a bad cab", "plum"]);
    using plain = await loadReward({ type: "hps-v2.1", path }, { device });
    using rounded = await loadReward({ type: "hps-v2.1", path, roundScores: "f16" }, { device });
    const scores = Array.from(await plain.score(request));
    const halves = Array.from(await rounded.score(request));
    expect(halves).toEqual(scores.map(roundToF16));
    expect(halves).not.toEqual(scores);
    await expect(loadReward({ type: "hps-v2.1", path, roundScores: "bf16" }, { device })).rejects.toThrow(
      'roundScores: expected one of "f16", got "bf16"',
    );
  });

  it("rounds every kind of number as half precision does", () => {
    // 0.25 to 0.5 in steps of 2 ** -12; ties to even; the smallest, halves of it; the largest and what goes beyond.
    const cases: [number, number][] = [
      [0.3, 0.300048828125],
      [-0.3, -0.300048828125],
      [0.25 + 2 ** -13, 0.25],
      [0.25 + 3 * 2 ** -13, 0.25 + 2 ** -11],
      [0.5 - 2 ** -14, 0.5],
      [1 - 2 ** -12, 1],
      [2 ** -24, 2 ** -24],
      [2 ** -25, 0],
      [1.5 * 2 ** -24, 2 ** -23],
      [65504, 65504],
      [65519, 65504],
      [65520, Number.POSITIVE_INFINITY],
      [0, 0],
    ];
    for (const [value, half] of cases) expect(roundToF16(value), String(value)).toBe(half);
    for (let bits = 0; bits < 0x7c00; bits++) {
      const fraction = bits & 0x3ff;
      const exponent = bits >> 10;
      const exact = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
      expect(roundToF16(exact)).toBe(exact);
    }
    expect(roundToF16(Number.NaN)).toBeNaN();
    expect(roundToF16(-1e9)).toBe(Number.NEGATIVE_INFINITY);
  });

  it("says so when there is nothing at its path", async () => {
    for (const type of ["hps-v2.1", "clip", "pickscore"]) {
      await expect(loadReward({ type, path: join(folder, "not-there") }, { device })).rejects.toMatchObject({
        code: "ERR_FILE",
        message: expect.stringContaining("not-there"),
      });
    }
    await expect(loadReward({ type: "clip", path: join(folder, "not-there") }, { device })).rejects.toThrow(
      "expected a model's file or folder, found nothing",
    );
  });

  it("looks for its published name, and says what is missing", async () => {
    const path = publish("hps-default", false);
    await expect(loadReward("hps-v2.1", { device, baseFolder: path })).rejects.toThrow(
      "expected a CLIP vocabulary in",
    );
    const given = loadReward({ type: "hps-v2.1", path, tokenizer: "nowhere" }, { device, baseFolder: path });
    await expect(given).rejects.toMatchObject({ code: "ERR_TOKENIZER" });
  });
});

describe("weights of a scorer", () => {
  it("are stored as the file stores them", () => {
    expect(storageOf(new URL("./fixtures/hps-small.pt", import.meta.url).pathname)).toBe("f16");
    for (const dtype of ["f32", "bf16", "f16"] as const) {
      const path = writeModel("clip-gelu", join(folder, `clip-${dtype}`), { dtype });
      expect(storageOf(join(path, "model.safetensors"))).toBe(dtype);
    }
  });
});

describe("loadReward", () => {
  const prompts = ["one red circle on a white background", "one blue circle on a white background"];
  const pictures = [disc(RED, [255, 255, 255]), disc(BLUE, [255, 255, 255])];

  it("loads a CLIP folder with its tokenizer, and tells right from wrong", async () => {
    using reward = await loadReward({ type: "clip", path: "reward" }, { device, baseFolder: TINY });
    expect(reward.name).toBe("clip");
    using request = await requestOf(device, pictures, prompts);
    const right = await reward.score(request);
    const wrong = await reward.score({ ...request, prompts: [...prompts].reverse() });
    expect(right[0]).toBeGreaterThan(wrong[0]! + 0.1);
    expect(right[1]).toBeGreaterThan(wrong[1]! + 0.1);
    expect(Math.abs(right[0]!)).toBeLessThanOrEqual(1);
  });

  it("scores a picture the same in any batch", async () => {
    using reward = await loadReward({ type: "clip", path: "reward" }, { device, baseFolder: TINY });
    using both = await requestOf(device, pictures, prompts);
    using second = await requestOf(device, [pictures[1]!], [prompts[1]!]);
    expect((await reward.score(second))[0]).toBe((await reward.score(both))[1]);
  });

  it("computes a prompt once", async () => {
    const clip = await loadClipFolder(device, join(TINY, "reward"), "f32");
    let asked = 0;
    const ids = Int32Array.from([575, 60, 576, ...Array(74).fill(576)]);
    const tokenizer = {
      encode: () => {
        asked++;
        return ids;
      },
    };
    const encodeImages = processedImageEncoder(device, clip, clipProcessor(64));
    using reward = new ClipReward({ name: "clip", device, clip, tokenizer, encodeImages });
    using request = await requestOf(device, pictures, ["a", "a"]);
    await reward.score(request);
    await reward.score(request);
    expect(asked).toBe(1);
  });

  it("leaves no tensor behind", async () => {
    const reward = await loadReward({ type: "clip", path: "reward" }, { device, baseFolder: TINY });
    const request = await requestOf(device, pictures, prompts);
    const before = native().liveHandles().tensors;
    await reward.score(request);
    await reward.score(request);
    expect(native().liveHandles().tensors).toBe(before);
    request[Symbol.dispose]();
    reward.dispose();
  });

  it("offers times100 and clampZero", async () => {
    const load = (more: Partial<RewardConfig>) =>
      loadReward({ type: "clip", path: "reward", ...more }, { device, baseFolder: TINY });
    using plain = await load({});
    using changed = await load({ times100: true, clampZero: true });
    // White noise is like nothing that the model knows.
    const noise = flat([0, 0, 0], 64, 64);
    for (let i = 0; i < noise.data.length; i++) noise.data[i] = (i * 2654435761) >>> 24;
    using request = await requestOf(device, [pictures[0]!, noise], [prompts[0]!, prompts[1]!]);
    const scores = await plain.score(request);
    const expected = Array.from(scores, (score) => 100 * Math.max(score, 0));
    expect(Array.from(await changed.score(request))).toEqual(expected);
  });

  it("pickscore: the same model with and without logit scale", async () => {
    const load = (scale: string) =>
      loadReward({ type: "pickscore", path: "reward", scale }, { device, baseFolder: TINY });
    using cosine = await load("cosine");
    using logit = await load("logit");
    using request = await requestOf(device, pictures, prompts);
    const { logitScale, model } = await loadClipFolder(device, join(TINY, "reward"), "bf16");
    model.dispose();
    const scaled = Array.from(await cosine.score(request), (score) => score * logitScale);
    expect(Array.from(await logit.score(request))).toEqual(scaled);
    expect(logitScale).toBeGreaterThan(1);
  });

  it("refuses a vocabulary that is too large for the model", async () => {
    const path = writeModel("clip-gelu", join(folder, "small-vocabulary"));
    const load = loadReward({ type: "clip", path }, { device, vocabularies: [TINY] });
    await expect(load).rejects.toThrow(
      "clip: expected a tokenizer of at most 60 ids for this model, got 577",
    );
  });

  it("says where it looked for a vocabulary", async () => {
    const path = writeModel("clip-gelu", join(folder, "no-vocabulary"));
    await expect(loadReward({ type: "clip", path }, { device })).rejects.toThrow(
      `clip: expected a CLIP vocabulary in ${path}, found none`,
    );
  });
});
