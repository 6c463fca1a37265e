/**
 * The door: everything that the native addon offers, and the only file that opens it.
 *
 * A job, not an op, crosses here: a method that works on the device returns a {@link NativeJob}. Jobs of one device run in order on its
 * own thread. Handles own device memory and must be disposed; the garbage collector is only the last net.
 *
 * Legend: B batch, L tokens, C channels, D width.
 */
import { isMainThread } from "node:worker_threads";
import { loadAddon } from "./native-loader.js";

/** Work under way on a device thread. */
export interface NativeJob<T> {
  readonly promise: Promise<T>;
  /** Asks the job to stop between two ops; the promise then rejects with code `ERR_ABORTED`. */
  abort(): void;
}

export type DTypeName = "f32" | "bf16" | "f16" | "f64" | "i32" | "i64" | "u8";

/** What was found of a backend, and if it cannot be used, why. */
export interface BackendReport {
  name: string;
  state: string;
  devices: number;
  message: string;
  hint: string;
  /** An engine of collectives, which brings no devices. */
  collectives: boolean;
}

export interface MemoryReport {
  /** Bytes in live tensors. */
  used: number;
  peak: number;
  /** Bytes taken from the system, used or cached. */
  held: number;
  /** Bytes of the device's own memory that nobody has taken; absent on the CPU, which computes in the host's. */
  free?: number;
  allocations: number;
  systemAllocations: number;
}

export interface NativeTensor extends Disposable {
  readonly shape: number[];
  readonly dtype: DTypeName;
  readonly bytes: number;
  readonly disposed: boolean;
  /** All elements in row-major order as f32 (f64 keeps only f32's precision). */
  download(): NativeJob<Float32Array>;
  dispose(): void;
}

export interface ParameterInfo {
  name: string;
  shape: number[];
  dtype: DTypeName;
  trainable: boolean;
}

/** One published tensor of a file, and where its numbers go. */
export interface LoadItem {
  /** Name of the model's parameter. */
  parameter: string;
  file: string;
  /** Name of the tensor in the file. */
  tensor: string;
  /** First row of the file's tensor and how many; the whole tensor when absent. */
  row?: number;
  rows?: number;
  /** The file holds the transposed matrix. */
  transposed?: boolean;
  /** The file's rows come in two halves that change places (BFL's final layer). */
  swapHalves?: boolean;
}

export interface TensorInfo {
  name: string;
  /** As the file spells it: `F32`, `BF16`, `F8_E4M3`, ... */
  dtype: string;
  shape: number[];
}

export interface NativeModel extends Disposable {
  readonly kind: string;
  parameters(): ParameterInfo[];
  /** Names of parameters that no load() has filled yet. */
  missing(): string[];
  /** Reads tensors from safetensors or `.pt` files straight into the parameters. Non-finite numbers: `ERR_WEIGHTS`. */
  load(items: LoadItem[]): NativeJob<void>;
  /** The parameters named here train, all others are frozen. */
  setTrainable(names: string[]): NativeJob<void>;
  zeroGradients(): NativeJob<void>;
  /** Numbers of a parameter or of its gradient, as f32. */
  read(name: string, what: "value" | "gradient"): NativeJob<Float32Array>;
  write(name: string, values: Float32Array): NativeJob<void>;
  /** Writes parameters as safetensors, atomically (temporary name, sync, rename). */
  save(path: string, options: SaveOptions): NativeJob<void>;
  /** Adds parameters `<module>.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank]; frozen until setTrainable() names them. */
  addLora(options: LoraNative): NativeJob<void>;
  /** Records every trainable parameter, or its gradient; see {@link NativeDevice.observe}. */
  observe(what: "value" | "gradient"): NativeJob<void>;
  dispose(): void;
}

export interface SaveOptions {
  /** Parameter name, name in the file, factor to multiply with. */
  tensors: { parameter: string; name: string; scale?: number }[];
  dtype: DTypeName;
  metadata: Record<string, string>;
}

export interface LoraNative {
  rank: number;
  alpha: number;
  /** Full module names, such as `transformer_blocks.0.attn.to_q`. */
  modules: string[];
  seed: bigint;
}

export interface FluxConfigNative {
  inChannels: number;
  outChannels: number;
  numLayers: number;
  numSingleLayers: number;
  attentionHeadDim: number;
  numAttentionHeads: number;
  jointAttentionDim: number;
  pooledProjectionDim: number;
  guidanceEmbeds: boolean;
  axesDimsRope: number[];
}

/** What every pass of the transformer reads. */
export interface FluxInputs {
  /** Rows of earlier tensors [B, L, C] put together into one batch: each picks one batch row. */
  latents: { tensor: NativeTensor; row: number }[];
  /** For each batch row, which prompt: an index into `text` and `pooled`. */
  prompts: number[];
  /** Per prompt: [1, L_txt, D] and [1, D_pooled]. */
  text: NativeTensor[];
  pooled: NativeTensor[];
  /** Per batch row, as the network sees them: 0 to 1000, rounding already done. */
  timesteps: number[];
  /** Per batch row, times 1000; empty when the model has no guidance. */
  guidance: number[];
  gridRows: number;
  gridColumns: number;
  /** Per batch row, a row of what `modulations` answered for its timestep, guidance and prompt; absent: made anew. */
  modulations?: { tensor: NativeTensor; row: number }[];
}

/** What steers the blocks of a transformer, one row per timestep; fields as in {@link FluxInputs}. */
export type ModulationInputs = Pick<FluxInputs, "prompts" | "pooled" | "timesteps" | "guidance">;

export type StepKind = "dance-sde" | "flow-sde" | "cps" | "ode";

/** Names one normal draw of shape [L, C]: the same numbers on every device, in any batch, after any resume. */
export interface NoiseKey {
  seed: bigint;
  iteration: number;
  prompt: number;
  sample: number;
  timestep: number;
  /** Keeps draws for different purposes apart, e.g. `0` initial noise, `1` step noise. */
  purpose: number;
}

export interface StepOptions {
  kind: StepKind;
  /** f32 noise levels, per batch row. */
  sigmas: number[];
  nextSigmas: number[];
  eta: number;
}

export interface SampleStep extends FluxInputs, StepOptions {
  /** Per batch row; absent for ode. */
  noise?: NoiseKey[] | NativeTensor;
  /** Also return the denoised estimate x0. */
  denoised: boolean;
}

export interface SampleStepResult {
  /** [B, L, C] f32 */
  latents: NativeTensor;
  denoised?: NativeTensor;
  /** [B] f32: mean over the elements of a row of the log density of the step; absent for ode. Reading it waits for the device. */
  logProbs?: NativeTensor;
}

export interface PolicyStep extends FluxInputs, StepOptions {
  /** The latents that the rollout went to. */
  next: { tensor: NativeTensor; row: number }[];
  oldLogProbs: number[];
  advantages: number[];
  clipRange: number;
  /** The loss of each row is divided by this (accumulation times timesteps), before backward. */
  lossDivisor: number;
  /** Blocks whose activations are recomputed in backward: 0 none, -1 all. */
  recomputeBlocks: number;
  /** The last pass before the optimizer's step: gradients travel between ranks as soon as they are whole. */
  synchronize?: boolean;
  /** The last pass of a sample; needed when the optimizer is `ordered`. */
  endsSample?: boolean;
  /** How many samples this rank has in the update; they shape the tree of an `ordered` sum. */
  samples?: number;
}

export interface NativeFlux extends NativeModel {
  velocity(inputs: FluxInputs): NativeJob<NativeTensor>;
  /**
   * Shifts, scales and gates of all blocks [R, M] for R timesteps at once, good as long as the weights stay: the modulation's weights are
   * read once, not once a step.
   */
  modulations(inputs: ModulationInputs): NativeJob<NativeTensor>;
  /** Adds the gradients of sum(velocity * dVelocity) to those of the trainable parameters; for comparison and tests. */
  velocityGradient(
    inputs: FluxInputs,
    dVelocity: NativeTensor,
    recomputeBlocks: number,
  ): NativeJob<{
    velocity: NativeTensor;
    dLatents: NativeTensor;
    dText: NativeTensor;
  }>;
  sampleStep(step: SampleStep): NativeJob<SampleStepResult>;
  /**
   * Forward and backward of one microbatch. Answers [3, B] f32 on the device, rows in the order given: ratios, log probabilities, and losses
   * (the clipped surrogate before division).
   */
  policyStep(step: PolicyStep): NativeJob<NativeTensor>;
}

export interface NativeTextEncoder extends NativeModel {
  /** Token ids [B, L] -> hidden states [B, L, D]; pooled [B, D] for CLIP; projected [B, P] for a CLIPModel. */
  encode(
    ids: Int32Array,
    batch: number,
  ): NativeJob<{ hidden: NativeTensor; pooled?: NativeTensor; projected?: NativeTensor }>;
}

export interface NativeClip extends NativeTextEncoder {
  /** Pictures [B, 3, h, w] in [-1, 1] or, when `pixelValues`, already normalised -> projected features [B, P]. */
  encodeImages(images: NativeTensor, preprocess: ImagePreprocess | "pixelValues"): NativeJob<NativeTensor>;
  /** Cosine of image row i with text row rows[i]. */
  cosine(images: NativeTensor, text: NativeTensor, rows: number[]): NativeJob<Float32Array>;
}

export interface ImagePreprocess {
  size: number;
  /** Longest side to `size`, zero pad, centred; or shortest side to `size`, centre crop. */
  mode: "max-pad" | "short-crop";
  mean: number[];
  std: number[];
  /** Round to 8 bits first, as a picture that went through a file. */
  quantize: boolean;
}

export interface NativeVae extends NativeModel {
  /** Packed latents [B, L, 4C] -> pictures [B, 3, h, w] (about -1 to 1), after latents / scaling + shift. */
  decode(latents: NativeTensor, gridRows: number, gridColumns: number): NativeJob<NativeTensor>;
  /** Pictures [B, 3, h, w] -> packed latents [B, L, 4C]: (mean - shift) * scaling. */
  encode(images: NativeTensor): NativeJob<NativeTensor>;
  /** Decoder and encoder as published, unpacked: z [B, C, h, w] -> [B, 3, 8h, 8w]; images -> moments [B, 2C, h, w]. */
  decodeRaw(z: NativeTensor): NativeJob<NativeTensor>;
  encodeRaw(images: NativeTensor): NativeJob<NativeTensor>;
}

export interface OptimizerOptions {
  beta1: number;
  beta2: number;
  eps: number;
  weightDecay: number;
  /** Decay of the running average of the weights; 0: none. */
  emaDecay: number;
  /** Ranks that train together: gradients are summed over them. Absent: one rank. All must give the same options. */
  communicator?: NativeCommunicator;
  /** What a rank keeps for itself alone; see `native/train/gradient_sync.h`. Default `none`. */
  sharding?: GradientSharding;
  /** Gradients travel in pieces of so many MiB (of f32). Default 25. */
  bucketMiB?: number;
  /** Sum over the samples of an update in one tree, so that the number of ranks changes no bit. Default false. */
  ordered?: boolean;
  /** Gradients travel while backward still runs (default), or all at the step, for measurements. */
  overlap?: boolean;
}

export type GradientSharding = "none" | "optimizer" | "optimizer+gradients";

/** What communication between ranks took since the last step. */
export interface CommunicationReport {
  /** Something was under way. */
  secondsInFlight: number;
  /** Of which the device's thread waited for it. */
  secondsWaited: number;
  /** Handed over by this rank. */
  bytes: number;
  /** Sums of gradients, and how many of them began before backward ended. */
  collectives: number;
  overlapped: number;
}

export interface OptimizerStepResult {
  /** Before clipping; NaN or Infinity when the step was skipped. */
  gradientNorm: number;
  skipped: boolean;
  /** Updates done so far. */
  step: number;
  communication: CommunicationReport;
  /** Bytes on this rank: the most that gradients took since the last step; masters, moments and averages. */
  memory: { gradients: number; state: number };
}

export interface NativeOptimizer extends Disposable {
  /**
   * Makes gradients and state for the parameters that train now: before the first backward pass, for gradients that were there are forgotten.
   * Without it, the first of the other jobs does.
   */
  prepare(): NativeJob<void>;
  /** Waits until gradients are whole, summed over samples and ranks, for whoever looks at them before `step`. */
  settle(): NativeJob<void>;
  /** Clips by the global norm (0: no clipping), updates, zeroes the gradients; a non-finite norm skips the update. */
  step(learningRate: number, clipNorm: number): NativeJob<OptimizerStepResult>;
  /** Exchanges the weights with their running average, until it is called again. */
  swapEma(): NativeJob<void>;
  /** Masters, moments, averages and counters of this rank's share, atomically. */
  save(path: string): NativeJob<void>;
  /** The files of all shares of one moment, however many ranks wrote them. */
  load(paths: string | string[]): NativeJob<void>;
  dispose(): void;
}

/** What a device records; see `native/align/recorder.h`. */
export interface ObserveOptions {
  /** `stage`: only what observeTensor() names; `block`: inputs, outputs and gradients of blocks; `op`: of every op as well. */
  level: "stage" | "block" | "op";
  summary: "checksum" | "statistics" | "full";
  /** Where `full` puts the tensors (safetensors files). */
  folder: string;
  /** A file is written when it has so many bytes; default 64 MiB. */
  shardBytes?: number;
}

/** Numbers of one tensor, gathered piece by piece. */
export interface NativeMeasure {
  /** Elements in row-major order, whole and aligned. */
  add(data: Uint8Array, dtype: DTypeName): void;
  result(): {
    count: number;
    nan: number;
    inf: number;
    min: number;
    max: number;
    mean: number;
    l2: number;
    crc: number;
    sketch: number[];
  };
}

/** What is told of two tensors that should be alike; `native/align/measure.h` tells what each means. */
export interface NativePairResult {
  count: number;
  finite: number;
  equal: number;
  odd: number;
  withinOne: number;
  withinFive: number;
  dot: number;
  squaresA: number;
  squaresB: number;
  squaredDistance: number;
  maxAbsolute: number;
  maxRelative: number;
  worst: number;
  ulps: number[];
}

/** Gathered piece by piece. */
export interface NativePairMeasure {
  add(a: Uint8Array, aDtype: DTypeName, b: Uint8Array, bDtype: DTypeName): void;
  result(): NativePairResult;
}

/** Elements in row-major order that lie in a file from this byte on. */
export interface StoredElements {
  path: string;
  offset: number;
  dtype: DTypeName;
}

/** Ranks whose devices compute together; see `native/backend/communicator.h`. Collectives run beside the device's other work. */
export interface NativeCommunicator extends Disposable {
  readonly rank: number;
  readonly size: number;
  readonly description: string;
  /** In place; `ordered`: in one fixed pairwise tree over ranks. Resolves when the result is there. */
  allReduce(tensor: NativeTensor, options: { op: "sum" | "max"; ordered: boolean }): NativeJob<void>;
  /** `input` [size * n] -> `output` [n]. */
  reduceScatter(
    output: NativeTensor,
    input: NativeTensor,
    options: { op: "sum" | "max"; ordered: boolean },
  ): NativeJob<void>;
  /** `input` [n] -> `output` [size * n], in rank order. */
  allGather(output: NativeTensor, input: NativeTensor): NativeJob<void>;
  broadcast(tensor: NativeTensor, root: number): NativeJob<void>;
  barrier(): NativeJob<void>;
  /** What is under way and what comes later rejects with `ERR_COMMUNICATION` and this reason. */
  abort(reason: string): void;
  /** Calls that this rank has come to; stays 0 with engines that see for themselves who is missing. */
  readonly reached: number;
  /** What the rendezvous heard: `ranks` had come to `least` calls, all others to more. Named when a wait is in vain. */
  heard(least: number, ranks: number[]): void;
  dispose(): void;
}

export interface CommunicatorOptions {
  /** `shared-memory` is built in; others (`gloo`, `nccl`, `hccl`) are plugins. */
  engine: string;
  rank: number;
  size: number;
  /** Longest wait for another rank. */
  timeoutSeconds: number;
  /** The engine's own options as JSON, see lib/distributed/options.ts. */
  engineOptions: string;
}

/** A communicator in the making: offers travel through a rendezvous, then all ranks connect. */
export interface NativeCommunicatorSetup extends Disposable {
  offer(): NativeJob<Uint8Array>;
  /** `offers` in rank order. `ERR_COMMUNICATION` at the deadline. */
  connect(offers: Uint8Array[]): NativeJob<NativeCommunicator>;
  dispose(): void;
}

export interface NativeDevice extends Disposable {
  readonly name: string;
  readonly description: string;
  memory(): MemoryReport;
  resetPeakMemory(): void;
  /** Gives cached memory back to the system. */
  trim(): NativeJob<void>;
  /** Shortcuts that the device declined, with the reason, and how often. */
  declined(): Record<string, number>;
  setStrictShortcuts(strict: boolean): void;
  upload(values: Float32Array, shape: number[]): NativeJob<NativeTensor>;
  /** Keyed normal noise, one key per batch row: [keys, ...shape]. */
  noise(keys: NoiseKey[], shape: number[]): NativeJob<NativeTensor>;
  /** [B, 3, h, w] in [-1, 1] -> B pictures of h * w * 3 bytes, round(255 * clamp(x / 2 + 0.5)). */
  toRgb8(images: NativeTensor): NativeJob<Uint8Array>;
  createFlux(config: FluxConfigNative, weights: DTypeName): NativeFlux;
  createT5(config: Record<string, number>, weights: DTypeName): NativeTextEncoder;
  /** CLIP text tower alone. */
  createClipText(config: Record<string, number | string>, weights: DTypeName): NativeTextEncoder;
  /** Both towers and projections. */
  createClip(
    config: {
      text: Record<string, number | string>;
      vision: Record<string, number | string>;
      projectionDim: number;
    },
    weights: DTypeName,
  ): NativeClip;
  createVae(config: VaeConfigNative, weights: DTypeName): NativeVae;
  createOptimizer(model: NativeModel, options: OptimizerOptions): NativeOptimizer;
  createCommunicator(options: CommunicatorOptions): NativeCommunicatorSetup;
  /** Records from now on what jobs compute, without changing a bit of it; null: no more. */
  observe(options: ObserveOptions | null): NativeJob<void>;
  /** Looks into models again, or (null) no more for now; observeTensor() works either way. */
  observeLevel(level: ObserveOptions["level"] | null): NativeJob<void>;
  /** What comes next is recorded as part of this stage; what models compute (default: the same) as part of `inside`. */
  observeStage(name: string, inside?: string): NativeJob<void>;
  /** Records one tensor. With `rows` each of its rows by itself, as `name.5` and so on, so that batches of any size compare. */
  observeTensor(
    name: string,
    role: "input" | "output",
    tensor: NativeTensor,
    rows?: readonly number[],
  ): NativeJob<void>;
  /**
   * The lines recorded since the last call, as JSON, and what recording took so far; `flush` writes what waits in memory. `ERR_FILE`,
   * once, when the disk was full.
   */
  observed(flush?: boolean): NativeJob<{ lines: string[]; seconds: number }>;
  /** Stops the running job and those that wait (`ERR_ABORTED`) and ends the device's thread; handles of this device are then dead. */
  dispose(): void;
}

export interface VaeConfigNative {
  inChannels: number;
  outChannels: number;
  latentChannels: number;
  blockOutChannels: number[];
  layersPerBlock: number;
  normNumGroups: number;
  /** Default true. */
  midBlockAddAttention?: boolean;
  /** Default false, both. */
  useQuantConv?: boolean;
  usePostQuantConv?: boolean;
  scalingFactor: number;
  shiftFactor: number;
}

/** PyTorch's CPU generator, bit for bit. */
export interface NativeTorchGenerator {
  randn(count: number, dtype: "f32" | "f64"): Float32Array | Float64Array;
  randperm(count: number): Int32Array;
}

export interface NativeBinding {
  readonly abi: number;
  readonly version: string;
  probeBackends(): BackendReport[];
  /** `name` is "cpu", "cuda:0", "ascend:1"; options are the backend's own, see lib/options.ts. */
  openDevice(name: string, optionsJson: string): NativeDevice;
  createTorchGenerator(seed: bigint): NativeTorchGenerator;
  /** Keyed normals on the host: `count` values for one key. */
  keyedNormal(key: NoiseKey, count: number): Float32Array;
  /** Names, dtypes and shapes in a `.safetensors` or `.pt` file; everything is checked before anything is read. */
  inspectFile(path: string): { tensors: TensorInfo[]; metadata: Record<string, string> };
  /** Reads one tensor of a file as f32. */
  readTensor(path: string, name: string): { shape: number[]; values: Float32Array };
  Measure: new () => NativeMeasure;
  PairMeasure: new () => NativePairMeasure;
  /** Compares elements that lie in files, on several threads that read for themselves; `ERR_FILE` when one is cut off. */
  measureStored(a: StoredElements, b: StoredElements, elements: number): Promise<NativePairResult>;
  /** CRC-32 of more bytes after those that gave `crc`; begins with 0. */
  crc32(crc: number, data: Uint8Array): number;
  /** Handles alive now, over all devices, and how many the garbage collector had to clean up: what tests look for leaks with. */
  liveHandles(): {
    tensors: number;
    models: number;
    optimizers: number;
    /** Those in the making among them. */
    communicators: number;
    devices: number;
    collected: number;
  };
  /** Stops all jobs and joins all threads; idempotent. */
  shutdown(): void;
}

let binding: NativeBinding | undefined;

/** The addon, loaded on first use. Throws an error that explains itself (code `ERR_NATIVE_LOAD`). */
export function native(): NativeBinding {
  if (!binding) {
    binding = loadAddon() as NativeBinding;
    // process.exit() on the main thread skips the addon's own cleanup hooks, so its threads are joined here. A worker's hooks do run,
    // and its end must not stop the devices of others.
    if (isMainThread) process.once("exit", () => binding?.shutdown());
  }
  return binding;
}

/** Waits for a job; an aborted signal stops it. Rejects with the signal's reason in that case. */
export async function runJob<T>(job: NativeJob<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return job.promise;
  const stop = () => job.abort();
  if (signal.aborted) stop();
  else signal.addEventListener("abort", stop, { once: true });
  try {
    return await job.promise;
  } catch (error) {
    if (signal.aborted && (error as { code?: string }).code === "ERR_ABORTED") throw signal.reason;
    throw error;
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
