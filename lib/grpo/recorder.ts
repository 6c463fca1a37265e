/** What a run tells to somebody who records it (`danceflux align record`). Recording changes nothing of what is computed. */
import type { NativeModel, NativeTensor } from "../native.js";

/** Told the stages of one iteration, in order. */
export interface StageRecorder {
  /** What comes next belongs to this stage: `rollout/s3`. `batch` is which of its batches or microbatches. */
  stage(name: string, batch?: number): Promise<void>;
  /** A tensor [B, ...] whose rows are samples with these numbers, the same on any number of ranks; without them, a whole tensor. */
  tensor(
    name: string,
    role: "input" | "output",
    tensor: NativeTensor,
    rows?: readonly number[],
  ): Promise<void>;
  /** Numbers that the host holds. */
  numbers(name: string, values: ArrayLike<number>): void;
  /** The trainable parameters of a model, or their gradients. */
  parameters(model: NativeModel, what: "value" | "gradient"): Promise<void>;
  /** Pictures of samples with these numbers: [B, 3, h, w] about -1 to 1. */
  pictures(images: NativeTensor, rows: readonly number[]): Promise<void>;
  /** The iteration is over. */
  end(): Promise<void>;
}

/** Chooses what is recorded. */
export interface RunRecorder {
  /** Before prompts are encoded. */
  begin(): Promise<StageRecorder | undefined>;
  /** Before an iteration, counted from 0; undefined: this one is not recorded. */
  iteration(iteration: number): Promise<StageRecorder | undefined>;
}
