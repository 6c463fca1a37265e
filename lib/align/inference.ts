/** The acceptance run of inference: the same pictures from both sides, after every step. */
import { mkdir, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import type { TrainConfig } from "../grpo/config.js";
import { loadPrompts } from "../grpo/prompts.js";
import { toPictures } from "../image/from_device.js";
import { AsyncImageWriter, encodePng, pictureGrid, readPicture } from "../image/index.js";
import { writeAtomically } from "../models/save.js";
import { batches, evaluationKey, sampleBatch, samplePlan } from "../sample/sampler.js";
import { comparePictures, type PicturePair } from "./picture_pairs.js";
import { OpenSide, type Side } from "./side.js";

export interface InferenceOptions {
  /** Pictures; default 12. */
  pictures?: number;
  /** Default: the configuration's. */
  steps?: number;
  seed?: number;
  onProgress?: (what: string) => void;
}

const MARK = "side.json";
const stepFolder = (folder: string, step: number): string =>
  join(folder, `step-${String(step).padStart(2, "0")}`);
const fileOf = (number: number): string => `${String(number).padStart(3, "0")}.png`;

/** Draws a side's pictures: after each step what the end would be, `step-07/003.png`. */
export async function drawSide(
  given: TrainConfig,
  side: Side,
  folder: string,
  options: InferenceOptions = {},
): Promise<void> {
  using open = await OpenSide.open(side, given);
  const { config, pipeline, device } = open;
  const { pictures = 12, steps = config.sampling.steps, seed = config.seed } = options;
  const prompts = (await loadPrompts(config.prompts)).map(({ text }) => text);
  const { integerTimesteps, bf16Timesteps } = config.compat;
  const plan = samplePlan(pipeline, {
    ...config.sampling,
    steps,
    kind: "ode",
    integerTimesteps,
    bf16Timesteps,
    window: undefined,
  });
  for (let step = 0; step < steps; step++) await mkdir(stepFolder(folder, step), { recursive: true });
  const writer = new AsyncImageWriter();
  const numbers = Array.from({ length: pictures }, (_, i) => i);
  for (const part of batches(numbers, config.sampling.batch)) {
    options.onProgress?.(`${side.label}: picture ${part[0]! + 1} of ${pictures}`);
    const embeddings = await pipeline.encodePrompts(part.map((number) => prompts[number % prompts.length]!));
    const rows = part.map((number, i) => {
      const key = (step: number) =>
        evaluationKey(BigInt(seed), prompts[number % prompts.length]!, number, step);
      return { embedding: embeddings[i]!, initial: key(0), stepNoise: (step: number) => key(step + 1) };
    });
    const watch = {
      denoised: true,
      async before() {},
      async after(
        step: number,
        { denoised }: { denoised?: { dispose(): void } & Parameters<typeof toPictures>[1] },
      ) {
        const images = await pipeline.decode(denoised!, plan.grid.rows, plan.grid.columns);
        const drawn = await toPictures(device.handle, images);
        images.dispose();
        for (const [i, picture] of drawn.entries())
          await writer.write(join(stepFolder(folder, step), fileOf(part[i]!)), picture);
      },
    };
    using _trajectory = await sampleBatch(pipeline, plan, rows, { keep: false, watch });
    for (const embedding of embeddings) embedding[Symbol.dispose]();
  }
  await writer.flush();
  const facts = {
    side: side.label,
    device: device.description,
    weights: pipeline.weights,
    pictures,
    steps,
    seed,
  };
  const told = {
    ...facts,
    patch: pipeline.vaeFactor * 2,
    prompts: numbers.map((i) => prompts[i % prompts.length]!),
  };
  await writeAtomically(join(folder, MARK), `${JSON.stringify(told, null, 2)}\n`);
}

export interface DrawnSide {
  side: string;
  device: string;
  pictures: number;
  steps: number;
  seed: number;
  patch: number;
  prompts: string[];
}

export async function isDrawn(path: string): Promise<boolean> {
  return stat(join(path, MARK)).then(
    () => true,
    () => false,
  );
}

/** @throws {DanceError} `ERR_DUMP` when the folder was not drawn to its end. */
export async function readDrawn(folder: string): Promise<DrawnSide> {
  try {
    return JSON.parse(await readFile(join(folder, MARK), "utf8")) as DrawnSide;
  } catch (cause) {
    throw new DanceError("ERR_DUMP", `${folder}: expected pictures of align inference, got none`, { cause });
  }
}

export interface StepResult {
  step: number;
  psnr: { mean: number; least: number };
  ssim: { mean: number; least: number };
  pairs: PicturePair[];
}

export interface InferenceResult {
  a: DrawnSide;
  b: DrawnSide;
  steps: StepResult[];
  aligned: boolean;
  sentence: string;
}

/** A capped mean: equal pictures have an infinite ratio. */
const MOST_PSNR = 100;

function spreadOf(values: number[]): { mean: number; least: number } {
  return { mean: values.reduce((sum, value) => sum + value, 0) / values.length, least: Math.min(...values) };
}

function sentenceOf(steps: StepResult[]): string {
  const last = steps.at(-1)!;
  const bad = last.pairs.filter(({ differs }) => differs);
  if (last.pairs.every(({ psnr }) => psnr === Number.POSITIVE_INFINITY))
    return `Aligned: all ${last.pairs.length} pictures are equal on both sides, pixel by pixel.`;
  const numbers = `SSIM ${last.ssim.least.toFixed(3)} or better, PSNR ${last.psnr.least.toFixed(1)} dB or better`;
  if (bad.length === 0)
    return `Aligned: all ${last.pairs.length} pictures look the same on both sides (${numbers}).`;
  const first = steps.find(({ pairs }) => pairs.some(({ differs }) => differs))!;
  const seen = first.pairs.find(({ differs }) => differs)!;
  return `Not aligned: ${bad.length} of ${last.pairs.length} pictures look different; it shows first after step ${first.step}, in ${seen.file}: ${seen.warnings[0]}.`;
}

/** Compares what two sides drew; `b` is what counts as right. */
export async function compareDrawn(aFolder: string, bFolder: string): Promise<InferenceResult> {
  const [a, b] = await Promise.all([readDrawn(aFolder), readDrawn(bFolder)]);
  if (a.steps !== b.steps || a.pictures !== b.pictures || a.seed !== b.seed) {
    const told = (side: DrawnSide) =>
      `${side.pictures} pictures of ${side.steps} steps from seed ${side.seed}`;
    throw new DanceError(
      "ERR_DUMP",
      `inference: expected one setting on both sides, got ${told(a)} and ${told(b)}`,
    );
  }
  const steps: StepResult[] = [];
  for (let step = 0; step < a.steps; step++) {
    const pairs: PicturePair[] = [];
    for (const file of (await readdir(stepFolder(aFolder, step)))
      .filter((name) => /^\d+\.png$/.test(name))
      .sort())
      pairs.push(
        await comparePictures(
          join(stepFolder(aFolder, step), file),
          join(stepFolder(bFolder, step), file),
          file,
          b.patch,
        ),
      );
    steps.push({
      step,
      psnr: spreadOf(pairs.map((pair) => Math.min(MOST_PSNR, pair.psnr))),
      ssim: spreadOf(pairs.map((pair) => pair.ssim)),
      pairs,
    });
  }
  const aligned = steps.at(-1)!.pairs.every(({ differs }) => !differs);
  return { a, b, steps, aligned, sentence: sentenceOf(steps) };
}

/** Every step a row of a grid, A above B: one picture to look at. */
export async function writeStepGrid(folder: string, result: InferenceResult, most = 6): Promise<string> {
  const tiles = [];
  for (const { pairs } of result.steps) {
    const shown = pairs.slice(0, most);
    for (const { a } of shown) tiles.push(await readPicture(a));
    for (const { b } of shown) tiles.push(await readPicture(b));
  }
  const path = join(folder, "steps.png");
  const columns = Math.min(most, result.steps[0]!.pairs.length);
  const { writeFile } = await import("node:fs/promises");
  await writeFile(path, await encodePng(pictureGrid(tiles, { columns })));
  return path;
}
