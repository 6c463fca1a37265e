/** Writing a transformer so that diffusers loads it. */
import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type NativeFlux, runJob } from "../native.js";
import { fluxConfigJson } from "./flux.js";
import { isLoraName } from "./lora.js";
import type { FluxConfig, WeightDType } from "./types.js";

/** A small file that appears whole or not at all. */
export async function writeAtomically(path: string, content: string): Promise<void> {
  const temporary = `${path}.tmp-${process.pid}`;
  await writeFile(temporary, content, { flush: true });
  await rename(temporary, path);
}

/**
 * Writes `config.json` and `diffusion_pytorch_model.safetensors` into `folder` (a `transformer/` of the diffusers layout). Adapters are
 * not part of it.
 */
export async function saveFlux(
  model: NativeFlux,
  config: FluxConfig,
  folder: string,
  dtype: WeightDType,
  signal?: AbortSignal,
): Promise<void> {
  await mkdir(folder, { recursive: true });
  const names = model.parameters().map((parameter) => parameter.name);
  const tensors = names.filter((name) => !isLoraName(name)).map((name) => ({ parameter: name, name }));
  const path = join(folder, "diffusion_pytorch_model.safetensors");
  await runJob(model.save(path, { tensors, dtype, metadata: { format: "pt" } }), signal);
  await writeAtomically(join(folder, "config.json"), `${JSON.stringify(fluxConfigJson(config), null, 2)}\n`);
}
