/** What the rooms above know of a loaded model: handles on a device and the numbers of its configuration. */
import type { Device } from "../device.js";
import type { DTypeName, NativeFlux, NativeTensor } from "../native.js";

/** Storage of weights on the device. */
export type WeightDType = Extract<DTypeName, "f32" | "bf16" | "f16">;

/** `transformer/config.json`, checked. */
export interface FluxConfig {
  inChannels: number;
  outChannels: number;
  numLayers: number;
  numSingleLayers: number;
  attentionHeadDim: number;
  numAttentionHeads: number;
  jointAttentionDim: number;
  pooledProjectionDim: number;
  guidanceEmbeds: boolean;
  axesDimsRope: [number, number, number];
}

/** Embeddings of one prompt: text [1, L, D] and pooled [1, P], on the device. */
export interface PromptEmbedding extends Disposable {
  readonly text: NativeTensor;
  readonly pooled: NativeTensor;
}

/** `scheduler/scheduler_config.json`: what the sampling schedule needs. */
export interface SchedulerConfig {
  shift: number;
  useDynamicShifting: boolean;
  baseShift: number;
  maxShift: number;
  baseImageSeqLen: number;
  maxImageSeqLen: number;
}

/** A complete text-to-image model on a device. Made by `loadPipeline`. */
export interface Pipeline extends Disposable {
  readonly device: Device;
  readonly folder: string;
  readonly config: FluxConfig;
  readonly scheduler: SchedulerConfig;
  readonly weights: WeightDType;
  readonly transformer: NativeFlux;
  /** Pixels per latent along a side (8 for FLUX); a token covers twice that. */
  readonly vaeFactor: number;
  /** One embedding per prompt. `ERR_FREED` after freeTextEncoders(). */
  encodePrompts(prompts: string[], signal?: AbortSignal): Promise<PromptEmbedding[]>;
  /** Gives the text encoders' memory back; embeddings made before stay. */
  freeTextEncoders(): void;
  /** Packed latents [B, L, C] -> pictures [B, 3, h, w] about -1 to 1. */
  decode(
    latents: NativeTensor,
    gridRows: number,
    gridColumns: number,
    signal?: AbortSignal,
  ): Promise<NativeTensor>;
  dispose(): void;
}
