/** The trained part of a pipeline: which parameters move, the optimizer that moves them, and how they are written out. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { isLoraName, saveLora } from "../models/lora.js";
import { saveFlux } from "../models/save.js";
import type { Pipeline } from "../models/types.js";
import { type NativeOptimizer, runJob } from "../native.js";
import type { DistributedConfig, LearningConfig } from "./config.js";
import type { Team } from "./team.js";

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

/** What of a configuration a policy depends on. */
export interface PolicyConfig {
  learning: LearningConfig;
  distributed: DistributedConfig;
  seed: number;
}

/** The transformer as it is being trained. */
export class Policy implements Disposable {
  readonly pipeline: Pipeline;
  readonly optimizer: NativeOptimizer;
  readonly learning: LearningConfig;
  readonly #team: Team;

  private constructor(pipeline: Pipeline, optimizer: NativeOptimizer, learning: LearningConfig, team: Team) {
    this.pipeline = pipeline;
    this.optimizer = optimizer;
    this.learning = learning;
    this.#team = team;
  }

  /** All ranks of `team` call it, and every method below. Nothing large is made before `prepare()`. */
  static async create(
    pipeline: Pipeline,
    { learning, distributed, seed: number }: PolicyConfig,
    team: Team,
  ): Promise<Policy> {
    const seed = BigInt(number);
    await runJob(pipeline.transformer.setTrainable(await chooseTrainable(pipeline, learning, seed)));
    await runJob(pipeline.transformer.zeroGradients()); // an aborted run may have left some
    const optimizer = pipeline.device.handle.createOptimizer(pipeline.transformer, {
      ...learning.adam,
      emaDecay: learning.emaDecay,
      ...(team.communicator ? { communicator: team.communicator } : {}),
      sharding: distributed.sharding,
      bucketMiB: distributed.bucketMiB,
      ordered: distributed.collective === "ordered",
      overlap: distributed.overlap,
    });
    return new Policy(pipeline, optimizer, learning, team);
  }

  /**
   * Takes the memory of gradients and optimizer. After the text encoders went; but before the first activations: made after them, it would
   * take the memory that they leave, and they would need new.
   */
  async prepare(): Promise<void> {
    await runJob(this.optimizer.prepare());
  }

  /** Runs `work` with the running average in the weights' place, when there is one. */
  async withAverage<T>(work: () => Promise<T>): Promise<T> {
    if (this.learning.emaDecay === 0) return work();
    await runJob(this.optimizer.swapEma());
    let result: T;
    try {
      result = await work();
    } catch (error) {
      // The others may be elsewhere, and nobody goes on: weights that have to be gathered would be waited for in vain.
      if (this.#team.size === 1) await runJob(this.optimizer.swapEma());
      throw error;
    }
    await runJob(this.optimizer.swapEma());
    return result;
  }

  /**
   * Writes the adapter (`pytorch_lora_weights.safetensors`) or the transformer into `folder`, the running average if there is one. The first
   * rank writes.
   */
  async export(folder: string): Promise<void> {
    await this.withAverage(async () => {
      if (this.#team.isFirst) await this.#write(folder);
      await this.#team.meet("export"); // the others' weights stay as they are until then
    });
  }

  async #write(folder: string): Promise<void> {
    const { transformer, config, weights } = this.pipeline;
    await mkdir(folder, { recursive: true });
    if (this.learning.lora)
      await saveLora(transformer, join(folder, "pytorch_lora_weights.safetensors"), this.learning.lora);
    else await saveFlux(transformer, config, join(folder, "transformer"), weights);
  }

  [Symbol.dispose](): void {
    this.optimizer.dispose();
  }
}
