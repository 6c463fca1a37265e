/** Numbers of a run, one JSON object per line. */
import { type FileHandle, open } from "node:fs/promises";
import { DanceError } from "../errors.js";
import type { PictureReport } from "./picture_watch.js";

export interface Spread {
  mean: number;
  std: number;
  min: number;
  max: number;
}

/** Seconds per stage of an iteration. */
export interface StageSeconds {
  encode: number;
  rollout: number;
  decode: number;
  score: number;
  update: number;
  communicate: number;
  /** Waiting for pictures to be written, and the checkpoint after the iteration before. */
  save: number;
  evaluate: number;
}

export const noSeconds = (): StageSeconds => ({
  encode: 0,
  rollout: 0,
  decode: 0,
  score: 0,
  update: 0,
  communicate: 0,
  save: 0,
  evaluate: 0,
});

export interface IterationMetrics {
  type: "iteration";
  /** Iterations done, this one included. */
  iteration: number;
  /** Of the weighted mixture. */
  reward: Spread;
  /** Means of the single rewards, by name. */
  rewards: Record<string, number>;
  advantage: Spread;
  ratio: Spread & { maxDeviation: number; firstUpdateMaxDeviation: number };
  clipFraction: { high: number; low: number };
  loss: number;
  gradientNorm: number;
  learningRate: number;
  updates: number;
  zeroVarianceGroups: number;
  /** Scores that are missing because a reward that is not required failed. */
  rewardFailures: number;
  skippedUpdates: number;
  seconds: StageSeconds & { total: number };
  imagesPerSecond: number;
  /** Floating-point operations of the transformer per second of rollout and update. */
  modelFlops: number;
  /** With `output.pictureCheck`: of the pictures of all ranks. */
  pictures?: PictureReport;
  /** Bytes of the device; the most of any rank. `gradients` and `optimizer` are what training keeps beside the weights. */
  memory: { peak: number; held: number; gradients?: number; optimizer?: number };
  /** Absent for one rank. */
  distributed?: DistributedMetrics;
}

/** What ranks had to do with each other in an iteration; seconds and bytes are the most of any rank. */
export interface DistributedMetrics {
  ranks: number;
  /** Some gradients or weights were under way, ... */
  secondsInFlight: number;
  /** ... and the device waited for them. */
  secondsWaited: number;
  bytes: number;
  /** Sums of gradients, and how many of them began while backward still ran. */
  collectives: number;
  overlapped: number;
}

export interface EvaluationMetrics {
  type: "evaluation";
  iteration: number;
  pictures: number;
  rewards: Record<string, Spread>;
  seconds: number;
}

export type MetricsLine = IterationMetrics | EvaluationMetrics;

/** Mean, standard deviation (n - 1; 0 for a single value), minimum and maximum. */
export function spread(values: readonly number[]): Spread {
  const count = values.length;
  if (count === 0) return { mean: 0, std: 0, min: 0, max: 0 };
  const mean = values.reduce((sum, value) => sum + value, 0) / count;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  let [min, max] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of values) {
    if (value < min) min = value;
    if (value > max) max = value;
  }
  return { mean, std: count > 1 ? Math.sqrt(squares / (count - 1)) : 0, min, max };
}

/** Appends lines to `metrics.jsonl`. A line that cannot be written stops the run. */
export class MetricsFile {
  readonly #file: FileHandle;
  readonly #path: string;

  private constructor(file: FileHandle, path: string) {
    this.#file = file;
    this.#path = path;
  }

  /** `keep`: bytes of an earlier run that stay; what a killed run wrote after its last checkpoint is cut off. */
  static async open(path: string, keep: number): Promise<MetricsFile> {
    const file = await open(path, keep > 0 ? "r+" : "w").catch((cause) => {
      throw new DanceError("ERR_FILE", `${path}: cannot be written (${cause.message})`, { cause });
    });
    const { size } = await file.stat();
    if (size < keep) {
      await file.close();
      throw new DanceError(
        "ERR_FILE",
        `${path}: expected the ${keep} bytes of the last checkpoint or more, got ${size}`,
      );
    }
    await file.truncate(keep);
    return new MetricsFile(file, path);
  }

  async write(line: MetricsLine): Promise<void> {
    try {
      const { size } = await this.#file.stat();
      await this.#file.write(`${JSON.stringify(line)}\n`, size);
    } catch (cause) {
      throw new DanceError("ERR_FILE", `${this.#path}: cannot be written (${(cause as Error).message})`, {
        cause,
      });
    }
  }

  /** Brings everything to the disk and answers how long the file is: what a checkpoint remembers. */
  async sync(): Promise<number> {
    await this.#file.datasync();
    return (await this.#file.stat()).size;
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
