/** Options that name a device and a model, and what they become. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import type { Command } from "commander";
import { type Device, openDevice } from "../device.js";
import { DanceError } from "../errors.js";
import type { TrainConfig } from "../grpo/config.js";
import type { LoadOptions } from "../models/pipeline.js";
import type { WeightDType } from "../models/types.js";
import { readRun } from "../report/run.js";

export interface DeviceFlags {
  device: string;
  dtype?: WeightDType;
}

const DTYPES: readonly string[] = ["f32", "bf16", "f16"];

export function addDeviceOptions(command: Command): Command {
  return command
    .option("--device <name>", "cpu, cuda:0, ascend:0, ...", "cpu")
    .option(
      "--dtype <type>",
      `storage of the weights: ${DTYPES.join(", ")} (default f32 on the CPU, bf16 elsewhere)`,
      (text) => {
        if (DTYPES.includes(text)) return text;
        throw new DanceError(
          "ERR_USAGE",
          `--dtype: expected one of ${DTYPES.join(", ")}, got ${JSON.stringify(text)}`,
        );
      },
    );
}

export const openNamed = ({ device }: DeviceFlags): Device => openDevice(device);

/** A model to sample from, and what is known of how it was trained. */
export interface ModelSource {
  folder: string;
  transformer?: string;
  lora?: string;
  /** Of the run that trained it. */
  config?: TrainConfig;
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/** A pipeline's folder, or a finished run's: then the model that it started from with what it learned. */
export async function modelSource(folder: string): Promise<ModelSource> {
  const isRun = (await exists(join(folder, "metrics.jsonl"))) && (await exists(join(folder, "config.json")));
  if (!isRun) return { folder };
  const { config } = await readRun(folder);
  const transformer = join(folder, "final", "transformer");
  const lora = join(folder, "final", "pytorch_lora_weights.safetensors");
  if (await exists(transformer)) return { folder: config.model.path, transformer, config };
  if (await exists(lora)) return { folder: config.model.path, lora, config };
  throw new DanceError(
    "ERR_FILE",
    `${folder}: expected a finished run with final/, found a run that is not finished`,
    {
      hint: "train it to its end, or name the folder of a model",
    },
  );
}

export function loadOptions(
  device: Device,
  { dtype }: DeviceFlags,
  onProgress: (what: string) => void,
): LoadOptions {
  return { device, onProgress, ...(dtype ? { dtype } : {}) };
}
