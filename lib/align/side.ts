/** One side of a comparison: a device, how it is opened, and how the model is kept on it. */
import { type Device, openDevice } from "../device.js";
import { DanceError } from "../errors.js";
import type { TrainConfig } from "../grpo/config.js";
import { loadPipeline } from "../models/pipeline.js";
import type { Pipeline, WeightDType } from "../models/types.js";
import type { DeviceOptions } from "../options.js";

export interface Side {
  /** As it was written: `cpu,dtype=bf16`. */
  label: string;
  device: string;
  options: Record<string, unknown>;
  dtype?: WeightDType;
  /** Pictures in one forward pass. */
  batch?: number;
  /** Length of T5's input. */
  textLength?: number;
}

const DTYPES: readonly string[] = ["f32", "bf16", "f16"];

function countOf(name: string, text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw new DanceError(
    "ERR_USAGE",
    `side: ${name}: expected a whole number above 0, got ${JSON.stringify(text)}`,
  );
}

/**
 * Reads `DEVICE,NAME=VALUE,...`: `dtype`, `batch` and `textLength` are about the model, every other name is an option of the device
 * (`threads=1`, `isa=portable`, `determinism=strict`).
 *
 * @throws {DanceError} `ERR_USAGE`
 */
export function parseSide(text: string): Side {
  const [device = "", ...settings] = text.split(",");
  if (!/^[a-z]\w*(:\d+)?$/.test(device)) {
    throw new DanceError(
      "ERR_USAGE",
      `side: expected DEVICE,NAME=VALUE,... such as cpu,dtype=bf16, got ${text}`,
    );
  }
  const side: Side = { label: text, device, options: {} };
  for (const setting of settings) {
    const [, name, value] = /^([\w.]+)=(.*)$/.exec(setting) ?? [];
    if (name === undefined || value === undefined)
      throw new DanceError("ERR_USAGE", `side: expected NAME=VALUE, got ${JSON.stringify(setting)}`);
    if (name === "dtype") {
      if (!DTYPES.includes(value))
        throw new DanceError("ERR_USAGE", `side: dtype: expected one of ${DTYPES.join(", ")}, got ${value}`);
      side.dtype = value as WeightDType;
    } else if (name === "batch" || name === "textLength") side[name] = countOf(name, value);
    else side.options[name] = /^-?\d+$/.test(value) ? Number(value) : value;
  }
  return side;
}

/** The configuration as this side runs it. */
export function sideConfig(config: TrainConfig, side: Side): TrainConfig {
  return {
    ...config,
    device: { name: side.device, ...(side.options as DeviceOptions) },
    model: { ...config.model, ...(side.dtype ? { dtype: side.dtype } : {}) },
    sampling: { ...config.sampling, ...(side.batch ? { batch: side.batch } : {}) },
  };
}

/** The side that a configuration itself names. */
export function configSide({ device, model }: TrainConfig): Side {
  const { name, ...options } = device;
  return {
    label: name,
    device: name,
    options: { ...options },
    ...(model.dtype ? { dtype: model.dtype } : {}),
  };
}

/** A side's device with its pipeline. */
export class OpenSide implements Disposable {
  readonly side: Side;
  readonly config: TrainConfig;
  readonly device: Device;
  readonly pipeline: Pipeline;

  private constructor(side: Side, config: TrainConfig, device: Device, pipeline: Pipeline) {
    this.side = side;
    this.config = config;
    this.device = device;
    this.pipeline = pipeline;
  }

  /** @throws {DanceError} as `openDevice` and `loadPipeline` do. */
  static async open(side: Side, given: TrainConfig): Promise<OpenSide> {
    const config = sideConfig(given, side);
    const device = openDevice(side.device, side.options as DeviceOptions);
    try {
      const { path, dtype } = config.model;
      const pipeline = await loadPipeline(path, {
        device,
        ...(dtype ? { dtype } : {}),
        ...(side.textLength ? { maxSequenceLength: side.textLength } : {}),
      });
      return new OpenSide(side, config, device, pipeline);
    } catch (error) {
      device.dispose();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    this.pipeline.dispose();
    this.device.dispose();
  }
}
