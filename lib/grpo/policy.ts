/** The trained part of a pipeline: which parameters move, the optimizer that moves them, and how they are written out. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { isLoraName, saveLora } from "../models/lora.js";
import { saveFlux } from "../models/save.js";
import type { Pipeline } from "../models/types.js";
import { type NativeOptimizer, runJob } from "../native.js";
import type { LearningConfig } from "./config.js";

// Linear layers that an adapter may be given.
const LAYER = /^(.+)\.weight$/;

function adaptedModules(pipeline: Pipeline, targets: string[]): string[] {
  const layers = pipeline.transformer
    .parameters()
    .filter((parameter) => parameter.shape.length === 2)
    .map((parameter) => LAYER.exec(parameter.name)?.[1])
    .filter((name) => name !== undefined);
  const chosen = layers.filter((name) =>
    targets.some((target) => name === target || name.endsWith(`.${target}`)),
  );
  const idle = targets.find(
    (target) => !layers.some((name) => name === target || name.endsWith(`.${target}`)),
  );
  if (idle !== undefined) {
    throw new DanceError(
      "ERR_OPTION",
      `config: learning.lora.targets: expected names of layers, got ${JSON.stringify(idle)}`,
    );
  }
  return chosen;
}

/** Which parameters train: the adapters, those that the patterns name, or all. */
async function chooseTrainable(
  pipeline: Pipeline,
  learning: LearningConfig,
  seed: bigint,
): Promise<string[]> {
  if (learning.lora) {
    const { rank, alpha, targets } = learning.lora;
    await runJob(
      pipeline.transformer.addLora({ rank, alpha, modules: adaptedModules(pipeline, targets), seed }),
    );
  }
  const names = pipeline.transformer.parameters().map((parameter) => parameter.name);
  if (learning.lora) return names.filter(isLoraName);
  const patterns = learning.trainable?.map((pattern) => new RegExp(pattern));
  const chosen = patterns ? names.filter((name) => patterns.some((pattern) => pattern.test(name))) : names;
  if (chosen.length === 0) {
    throw new DanceError(
      "ERR_OPTION",
      `config: learning.trainable: expected patterns that name a parameter, got ${JSON.stringify(learning.trainable)}`,
    );
  }
  return chosen;
}

/** The transformer as it is being trained. */
export class Policy implements Disposable {
  readonly pipeline: Pipeline;
  readonly optimizer: NativeOptimizer;
  readonly learning: LearningConfig;

  private constructor(pipeline: Pipeline, optimizer: NativeOptimizer, learning: LearningConfig) {
    this.pipeline = pipeline;
    this.optimizer = optimizer;
    this.learning = learning;
  }

  static async create(pipeline: Pipeline, learning: LearningConfig, seed: bigint): Promise<Policy> {
    await runJob(pipeline.transformer.setTrainable(await chooseTrainable(pipeline, learning, seed)));
    await runJob(pipeline.transformer.zeroGradients()); // an aborted run may have left some
    const optimizer = pipeline.device.handle.createOptimizer(pipeline.transformer, {
      ...learning.adam,
      emaDecay: learning.emaDecay,
    });
    try {
      // Before the first activations: made after them, it would take the memory that they leave, and they would need new.
      await runJob(optimizer.prepare());
    } catch (error) {
      optimizer.dispose();
      throw error;
    }
    return new Policy(pipeline, optimizer, learning);
  }

  /** Runs `work` with the running average in the weights' place, when there is one. */
  async withAverage<T>(work: () => Promise<T>): Promise<T> {
    if (this.learning.emaDecay === 0) return work();
    await runJob(this.optimizer.swapEma());
    try {
      return await work();
    } finally {
      await runJob(this.optimizer.swapEma());
    }
  }

  /** Writes the adapter (`pytorch_lora_weights.safetensors`) or the transformer into `folder`, the running average if there is one. */
  async export(folder: string): Promise<string> {
    const { transformer, config, weights } = this.pipeline;
    await mkdir(folder, { recursive: true });
    return this.withAverage(async () => {
      if (this.learning.lora) {
        const path = join(folder, "pytorch_lora_weights.safetensors");
        await saveLora(transformer, path, this.learning.lora);
        return path;
      }
      const path = join(folder, "transformer");
      await saveFlux(transformer, config, path, weights);
      return path;
    });
  }

  [Symbol.dispose](): void {
    this.optimizer.dispose();
  }
}
