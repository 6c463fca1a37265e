/**
 * What the CLIP-family rewards share: features of pictures and prompts, and the cosine between them.
 *
 * B pictures, T distinct prompts of a batch, P width of the space that both towers share.
 */
import { access } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import type { LoadedClip } from "../models/clip.js";
import type { WeightDType } from "../models/types.js";
import { type NativeTensor, native, runJob } from "../native.js";
import type { Tokenizer } from "../text/index.js";
import type { Reward, ScoreRequest } from "./types.js";

/** Pictures of a request -> features [B, P], not normalised. The caller disposes them. */
export type ImageEncoder = (request: ScoreRequest) => Promise<NativeTensor>;

export interface ClipRewardParts {
  name: string;
  device: Device;
  clip: LoadedClip;
  tokenizer: Pick<Tokenizer, "encode">;
  encodeImages: ImageEncoder;
  /** From the cosine of a picture and its prompt to its score. Default: the cosine itself. */
  score?: (cosine: number) => number;
}

/** Prompts whose features are kept: 16 MiB at P = 1024. */
const CACHED_PROMPTS = 4096;

/** Scores pictures by the cosine of their features and their prompt's. A prompt's features are computed once. */
export class ClipReward implements Reward {
  readonly name: string;
  readonly #parts: ClipRewardParts;
  /** Features [P] by prompt, the least recently used first. */
  readonly #text = new Map<string, Float32Array>();

  constructor(parts: ClipRewardParts) {
    this.name = parts.name;
    this.#parts = parts;
  }

  async score(request: ScoreRequest): Promise<number[]> {
    const { clip, encodeImages, score = (cosine) => cosine } = this.#parts;
    const prompts = [...new Set(request.prompts)];
    const rows = request.prompts.map((prompt) => prompts.indexOf(prompt));
    using text = await this.#textFeatures(prompts, request.signal);
    using images = await encodeImages(request);
    const cosines = await runJob(clip.model.cosine(images, text, rows), request.signal);
    return Array.from(cosines, score);
  }

  /** [T, P] on the device. */
  async #textFeatures(prompts: string[], signal?: AbortSignal): Promise<NativeTensor> {
    const features: Float32Array[] = [];
    for (const prompt of prompts) features.push(await this.#featuresOf(prompt, signal));
    const width = features[0]!.length;
    const all = new Float32Array(prompts.length * width);
    for (const [i, row] of features.entries()) all.set(row, i * width);
    return runJob(this.#parts.device.handle.upload(all, [prompts.length, width]), signal);
  }

  async #featuresOf(prompt: string, signal?: AbortSignal): Promise<Float32Array> {
    const known = this.#text.get(prompt);
    const features = known ?? (await this.#encode(prompt, signal));
    this.#text.delete(prompt);
    this.#text.set(prompt, features);
    if (this.#text.size > CACHED_PROMPTS) this.#text.delete(this.#text.keys().next().value!);
    return features;
  }

  async #encode(prompt: string, signal?: AbortSignal): Promise<Float32Array> {
    const { clip, tokenizer } = this.#parts;
    const encoded = await runJob(clip.model.encode(tokenizer.encode([prompt]), 1), signal);
    using _hidden = encoded.hidden;
    using _pooled = encoded.pooled;
    using projected = encoded.projected;
    return await runJob(projected!.download(), signal);
  }

  dispose(): void {
    this.#parts.clip.model.dispose();
    this.#text.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** @throws {DanceError} `ERR_TOKENIZER` when the vocabulary has more ids than the model has embeddings. */
export function checkTokenizer(tokenizer: Tokenizer, clip: LoadedClip, where: string): void {
  const rows = Number(clip.config.text.vocab_size);
  if (tokenizer.vocabSize > rows) {
    throw new DanceError(
      "ERR_TOKENIZER",
      `${where}: expected a tokenizer of at most ${rows} ids for this model, got ${tokenizer.vocabSize}`,
    );
  }
}

const STORAGE: Readonly<Record<string, WeightDType>> = { F16: "f16", BF16: "bf16" };

/** How to store the weights of a file so that nothing is lost and nothing is wasted: as its largest tensor is stored. */
export function storageOf(file: string): WeightDType {
  let tensors: { dtype: string; shape: number[] }[];
  try {
    tensors = native().inspectFile(file).tensors;
  } catch (error) {
    throw DanceError.from(error);
  }
  const size = (shape: number[]) => shape.reduce((product, dim) => product * dim, 1);
  const largest = tensors.reduce<{ dtype: string; shape: number[] } | undefined>(
    (best, tensor) => (best && size(best.shape) >= size(tensor.shape) ? best : tensor),
    undefined,
  );
  return STORAGE[largest?.dtype ?? ""] ?? "f32";
}

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/** Files of which a folder with a CLIP vocabulary has at least one. */
const VOCABULARIES = ["vocab.json", "tokenizer.json", "bpe_simple_vocab_16e6.txt.gz"];

/**
 * Where the vocabulary of a scorer lies: the first of `folders`, or their `tokenizer/`, that has one. All of CLIP's descendants share one
 * vocabulary, so that of the pipeline will do where the scorer's own folder has none.
 */
export async function findVocabulary(name: string, folders: string[]): Promise<string> {
  for (const folder of folders.flatMap((entry) => [entry, join(entry, "tokenizer")])) {
    for (const file of VOCABULARIES) {
      if (await exists(join(folder, file))) return file.endsWith(".gz") ? join(folder, file) : folder;
    }
  }
  throw new DanceError(
    "ERR_TOKENIZER",
    `${name}: expected a CLIP vocabulary in ${folders.join(" or ")}, found none`,
    {
      hint: "name one as the reward's option tokenizer; the tokenizer folder of a FLUX pipeline will do",
    },
  );
}
