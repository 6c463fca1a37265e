/** One interface for everything that scores pictures. */
import type { Device } from "../device.js";
import type { Picture } from "../image/index.js";
import type { WeightDType } from "../models/types.js";
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

/** One reward of a configuration: what scores, and how much it counts. */
export interface RewardConfig {
  /** `hps-v2.1`, `pickscore`, `clip`, `http`, or `module` (a JavaScript file whose default export scores pictures). */
  type: string;
  /** Shown in metrics; default the type. */
  name?: string;
  /** Weight in the mixture; default 1. */
  weight?: number;
  /**
   * `false`: a picture that this reward could not score gets the mean of its group, so that it neither helps nor harms, and
   * is counted in the metrics as `rewardFailures`. Default `true`: a failure ends the run, keeping its last checkpoint.
   */
  required?: boolean;
  /** Folder or file of the model, URL of the scorer, or path of the module. */
  path?: string;
  /** Everything else is the reward's own: each file of lib/rewards tells its options. */
  [option: string]: unknown;
}

/** What a loader is given: everything that is known of one reward. */
export interface RewardSource {
  name: string;
  config: RewardConfig;
  /** Absolute, or an address. */
  path: string;
  device: Device;
  dtype: WeightDType | undefined;
  baseFolder: string;
  vocabularies: string[];
  signal: AbortSignal | undefined;
}
