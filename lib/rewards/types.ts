/** One interface for everything that scores pictures. */
import type { Picture } from "../image/index.js";
import type { NativeTensor } from "../native.js";

export type { Picture };

/** What a reward is asked to score. All arrays have one entry per picture. */
export interface ScoreRequest {
  prompts: string[];
  /** On the device: [B, 3, h, w] about -1 to 1. */
  images: NativeTensor;
  /** On the host; made on first call, shared by all rewards of a batch. */
  pictures(): Promise<Picture[]>;
  /** Which iteration and which samples these are, for logs and remote scorers. */
  iteration: number;
  signal?: AbortSignal;
}

/** Scores pictures for their prompts: higher is better. */
export interface Reward extends Disposable {
  readonly name: string;
  /**
   * One finite number per picture. The caller checks count and finiteness and reports `ERR_REWARD` with this reward's name.
   */
  score(request: ScoreRequest): Promise<ArrayLike<number>>;
  dispose(): void;
}
