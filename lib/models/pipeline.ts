/** A complete text-to-image model from a folder: transformer, autoencoder, text encoders, tokenizers, scheduler. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import { type NativeFlux, type NativeTensor, type NativeTextEncoder, runJob } from "../native.js";
import { ClipTokenizer, T5Tokenizer } from "../text/index.js";
import { loadClipText, loadT5 } from "./encoders.js";
import { describe, Fields } from "./fields.js";
import { FLUX_FILES, loadFluxFile, loadFluxFolder } from "./flux.js";
import type { FluxConfig, Pipeline, PromptEmbedding, SchedulerConfig, WeightDType } from "./types.js";
import { type LoadedVae, loadVaeFile, loadVaeFolder } from "./vae.js";
import { firstFile } from "./weights.js";

export interface LoadOptions {
  device: Device;
  /** Storage of the matrices; default f32 on the CPU, bf16 elsewhere. */
  dtype?: WeightDType;
  signal?: AbortSignal;
  /** Length of T5's input; default the tokenizer's own (512), 256 for models without guidance (schnell). */
  maxSequenceLength?: number;
  /** Another transformer than the pipeline's: a folder in the diffusers layout, such as `final/transformer` of a run. */
  transformer?: string;
  /** Told what is being loaded, for people who wait. */
  onProgress?: (what: string) => void;
}

const PIPELINE_CLASS = "FluxPipeline";

/** Refuses another model by its own name, before a part of it is missed. BFL's folders have no `model_index.json`. */
async function checkIndex(folder: string): Promise<void> {
  const path = join(folder, "model_index.json");
  const fields = await Fields.read(path).catch((error: DanceError) => {
    if ((error.cause as NodeJS.ErrnoException | undefined)?.code === "ENOENT") return undefined;
    throw error;
  });
  const name = fields?.raw("_class_name");
  if (!fields || name === PIPELINE_CLASS) return;
  const got = typeof name === "string" && /^\w{1,60}$/.test(name) ? name : describe(name);
  throw new DanceError("ERR_CONFIG", `${path}: expected ${PIPELINE_CLASS}, got ${got}`);
}

/** `scheduler/scheduler_config.json`; what is missing has FLUX.1-dev's value. */
async function readScheduler(folder: string): Promise<SchedulerConfig> {
  const path = join(folder, "scheduler_config.json");
  const fields = await Fields.read(path).catch((error: DanceError) => {
    if (error.code === "ERR_FILE") return new Fields({ shift: 3, use_dynamic_shifting: true }, path);
    throw error;
  });
  return {
    shift: fields.number("shift", 1),
    useDynamicShifting: fields.flag("use_dynamic_shifting", false),
    baseShift: fields.number("base_shift", 0.5),
    maxShift: fields.number("max_shift", 1.15),
    baseImageSeqLen: fields.count("base_image_seq_len", 256),
    maxImageSeqLen: fields.count("max_image_seq_len", 4096),
  };
}

interface TextEncoders {
  clip: NativeTextEncoder;
  t5: NativeTextEncoder;
  clipTokenizer: ClipTokenizer;
  t5Tokenizer: T5Tokenizer;
}

// schnell was distilled with shorter prompts than dev; padding tokens are attended, so the length matters.
const UNGUIDED_LENGTH = 256;

class Embedding implements PromptEmbedding {
  readonly text: NativeTensor;
  readonly pooled: NativeTensor;
  constructor(text: NativeTensor, pooled: NativeTensor) {
    this.text = text;
    this.pooled = pooled;
  }
  [Symbol.dispose](): void {
    this.text.dispose();
    this.pooled.dispose();
  }
}

async function encodeOne(
  { clip, clipTokenizer, t5, t5Tokenizer }: TextEncoders,
  prompt: string,
  signal?: AbortSignal,
): Promise<Embedding> {
  const { hidden, pooled } = await runJob(clip.encode(clipTokenizer.encode(prompt), 1), signal);
  hidden.dispose();
  try {
    const text = await runJob(t5.encode(t5Tokenizer.encode([prompt]), 1), signal);
    return new Embedding(text.hidden, pooled!);
  } catch (error) {
    pooled!.dispose();
    throw error;
  }
}

class FluxPipeline implements Pipeline {
  readonly device: Device;
  readonly folder: string;
  readonly config: FluxConfig;
  readonly scheduler: SchedulerConfig;
  readonly weights: WeightDType;
  readonly transformer: NativeFlux;
  readonly vaeFactor: number;
  readonly #vae: LoadedVae;
  #encoders: TextEncoders | undefined;

  constructor(
    parts: Pick<Pipeline, "device" | "folder" | "config" | "scheduler" | "weights" | "transformer">,
    vae: LoadedVae,
    encoders: TextEncoders,
  ) {
    this.device = parts.device;
    this.folder = parts.folder;
    this.config = parts.config;
    this.scheduler = parts.scheduler;
    this.weights = parts.weights;
    this.transformer = parts.transformer;
    this.vaeFactor = vae.factor;
    this.#vae = vae;
    this.#encoders = encoders;
  }

  async encodePrompts(prompts: string[], signal?: AbortSignal): Promise<PromptEmbedding[]> {
    const encoders = this.#encoders;
    if (!encoders) {
      throw new DanceError(
        "ERR_FREED",
        "pipeline: the text encoders were freed; encode prompts before freeTextEncoders()",
      );
    }
    const embeddings: PromptEmbedding[] = [];
    try {
      for (const prompt of prompts) embeddings.push(await encodeOne(encoders, prompt, signal));
      return embeddings;
    } catch (error) {
      for (const embedding of embeddings) embedding[Symbol.dispose]();
      throw error;
    }
  }

  freeTextEncoders(): void {
    this.#encoders?.clip.dispose();
    this.#encoders?.t5.dispose();
    this.#encoders = undefined;
  }

  decode(
    latents: NativeTensor,
    gridRows: number,
    gridColumns: number,
    signal?: AbortSignal,
  ): Promise<NativeTensor> {
    return runJob(this.#vae.model.decode(latents, gridRows, gridColumns), signal);
  }

  dispose(): void {
    this.freeTextEncoders();
    this.transformer.dispose();
    this.#vae.model.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

const isFolder = (path: string) =>
  stat(path).then(
    (info) => info.isDirectory(),
    () => false,
  );

async function loadT5Tokenizer(folder: string, config: FluxConfig, wanted?: number): Promise<T5Tokenizer> {
  const whole = await T5Tokenizer.load(folder, wanted === undefined ? {} : { maxLength: wanted });
  const tooLong = wanted === undefined && !config.guidanceEmbeds && whole.contextLength > UNGUIDED_LENGTH;
  return tooLong ? T5Tokenizer.load(folder, { maxLength: UNGUIDED_LENGTH }) : whole;
}

async function loadEncoders(
  folder: string,
  config: FluxConfig,
  weights: WeightDType,
  { device, signal, onProgress, maxSequenceLength }: LoadOptions,
): Promise<TextEncoders> {
  const clipTokenizer = await ClipTokenizer.load(join(folder, "tokenizer"));
  const t5Tokenizer = await loadT5Tokenizer(join(folder, "tokenizer_2"), config, maxSequenceLength);
  onProgress?.("text encoder");
  const clip = await loadClipText(device, join(folder, "text_encoder"), weights, signal);
  onProgress?.("second text encoder");
  const t5 = await loadT5(device, join(folder, "text_encoder_2"), weights, signal).catch((error) => {
    clip.dispose();
    throw error;
  });
  return { clip, t5, clipTokenizer, t5Tokenizer };
}

async function loadTransformer(
  folder: string,
  weights: WeightDType,
  { device, signal, transformer }: LoadOptions,
) {
  if (transformer !== undefined) return loadFluxFolder(device, transformer, weights, signal);
  const diffusers = join(folder, "transformer");
  if (await isFolder(diffusers)) return loadFluxFolder(device, diffusers, weights, signal);
  const file = await firstFile(folder, FLUX_FILES);
  if (file) return loadFluxFile(device, file, weights, signal);
  throw new DanceError(
    "ERR_FILE",
    `${folder}: expected a transformer/ folder or flux1-dev.safetensors, found neither`,
  );
}

async function loadVae(
  folder: string,
  weights: WeightDType,
  { device, signal }: LoadOptions,
): Promise<LoadedVae> {
  const diffusers = join(folder, "vae");
  if (await isFolder(diffusers)) return loadVaeFolder(device, diffusers, weights, signal);
  const file = await firstFile(folder, ["ae.safetensors"]);
  if (file) return loadVaeFile(device, file, weights, signal);
  throw new DanceError("ERR_FILE", `${folder}: expected a vae/ folder or ae.safetensors, found neither`);
}

/**
 * Loads a FLUX pipeline from a folder in the diffusers layout; transformer and autoencoder may be BFL single files
 * (`flux1-dev.safetensors`, `ae.safetensors`) in its place.
 *
 * @throws {DanceError} `ERR_FILE`, `ERR_CONFIG`, `ERR_WEIGHTS`, `ERR_SAFETENSORS`, `ERR_TOKENIZER`: what is missing or does not fit, by name.
 */
export async function loadPipeline(folder: string, options: LoadOptions): Promise<Pipeline> {
  if (!(await isFolder(folder)))
    throw new DanceError("ERR_FILE", `${folder}: expected a folder with a FLUX pipeline`);
  const { device, onProgress } = options;
  const weights = options.dtype ?? (device.name === "cpu" ? "f32" : "bf16");
  const made: { dispose(): void }[] = [];
  try {
    await checkIndex(folder);
    const scheduler = await readScheduler(join(folder, "scheduler"));
    onProgress?.("transformer");
    const { config, model } = await loadTransformer(folder, weights, options);
    made.push(model);
    onProgress?.("autoencoder");
    const vae = await loadVae(folder, weights, options);
    made.push(vae.model);
    if (config.inChannels !== vae.config.latentChannels * 4) {
      throw new DanceError(
        "ERR_CONFIG",
        `${folder}: expected a transformer of ${vae.config.latentChannels * 4} input channels for this autoencoder, got ${config.inChannels}`,
      );
    }
    const encoders = await loadEncoders(folder, config, weights, options);
    return new FluxPipeline(
      { device, folder, config, scheduler, weights, transformer: model },
      vae,
      encoders,
    );
  } catch (error) {
    for (const part of made) part.dispose();
    throw error;
  }
}
