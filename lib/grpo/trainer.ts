/** Training a pipeline's transformer with DanceGRPO (Xue et al. 2025): the public face. The loop is in session.ts. */
import type { Group } from "../distributed/types.js";
import { DanceError } from "../errors.js";
import type { Pipeline } from "../models/types.js";
import type { WeightedReward } from "../rewards/scorer.js";
import type { Reward, RewardConfig } from "../rewards/types.js";
import type { PartialConfig, TrainConfig } from "./config.js";
import { checkDeal } from "./deal.js";
import type { EvaluationResult } from "./evaluation.js";
import type { EvaluationMetrics, IterationMetrics, StageSeconds } from "./metrics.js";
import type { RunRecorder } from "./recorder.js";
import { Session } from "./session.js";
import { Team } from "./team.js";
import { completeConfig } from "./validate.js";

export interface TrainerOptions extends Omit<PartialConfig, "model" | "rewards" | "device"> {
  pipeline: Pipeline;
  /** One reward, or a weighted mixture. They stay the caller's to dispose. */
  reward?: Reward;
  /** Loaded ones. Those that a preset names, to be loaded, give way to `reward`. */
  rewards?: readonly (WeightedReward | RewardConfig)[];
  /** Default: the training rewards. */
  evaluationRewards?: readonly WeightedReward[];
  /** The ranks that train together, made with the pipeline's device; it stays the caller's to close. Default: this process alone. */
  group?: Group;
}

/** What the trainer is doing, for people who wait. */
export interface Progress {
  stage: keyof StageSeconds;
  iteration: number;
  done: number;
  all: number;
}

export interface RunOptions {
  /** Stops at once; what was not saved is lost. */
  signal?: AbortSignal;
  /** Asks for an end: a running rollout is given up, a running update is finished, a checkpoint is written. */
  stop?: AbortSignal;
  /**
   * Ends when so many iterations are done, the same on all ranks; neither a checkpoint nor trained weights are written then. For a look at
   * how a run begins. Default: the configuration's `iterations`.
   */
  until?: number;
  onProgress?: (progress: Progress) => void;
  /** Told of a reward that is not required and failed, of a checkpoint that cannot be read and is passed over, and why. */
  onWarning?: (message: string) => void;
  onEvaluation?: (metrics: EvaluationMetrics, result: EvaluationResult) => void;
  /** Records what is computed, for comparison with another run. */
  recorder?: RunRecorder;
}

/** What a session works with. */
export interface TrainerParts {
  config: TrainConfig;
  pipeline: Pipeline;
  rewards: WeightedReward[];
  evaluationRewards: WeightedReward[];
  group?: Group;
}

const isLoaded = (entry: WeightedReward | RewardConfig): entry is WeightedReward =>
  typeof (entry.reward as Reward | undefined)?.score === "function";

const described = (mixture: readonly WeightedReward[]): RewardConfig[] =>
  mixture.map(({ reward, weight }) => ({ type: reward.name, weight }));

function partsOf({
  pipeline,
  reward,
  rewards = [],
  evaluationRewards,
  group,
  ...options
}: TrainerOptions): TrainerParts {
  const mixture = reward ? [{ reward, weight: 1 }] : rewards.filter(isLoaded);
  if (mixture.length === 0 || (!reward && mixture.length < rewards.length)) {
    throw new DanceError("ERR_OPTION", "rewards: expected loaded rewards, got none or only their names", {
      hint: "use loadReward()",
    });
  }
  const judges = evaluationRewards ?? mixture;
  const config = completeConfig({
    ...options,
    model: { path: pipeline.folder, dtype: pipeline.weights },
    device: { name: pipeline.device.name },
    rewards: described(mixture),
    evaluation: { ...options.evaluation, rewards: described(judges) },
  });
  const parts = { config, pipeline, rewards: mixture, evaluationRewards: [...judges] };
  return group ? { ...parts, group } : parts;
}

/** Trains a pipeline's transformer. */
export class GrpoTrainer {
  readonly config: TrainConfig;
  readonly #parts: TrainerParts;

  /**
   * From options; or from a complete configuration with all that it names already loaded.
   *
   * @throws {DanceError} `ERR_OPTION` for options that cannot be.
   */
  constructor(options: TrainerOptions | TrainerParts) {
    this.#parts = "config" in options ? options : partsOf(options);
    this.config = this.#parts.config;
    checkDeal(this.config, this.#parts.group?.size ?? 1);
  }

  /**
   * Runs until the configured number of iterations is done, yielding the metrics of each. A run folder that holds checkpoints of the same
   * configuration is resumed; iteration n then is bit for bit what an uninterrupted run would have given.
   *
   * @throws {DanceError} `ERR_OUTPUT` when the run folder belongs to something else or cannot be written; `ERR_REWARD`, `ERR_CHECKPOINT`,
   * `ERR_PROMPTS`; what was learned until the last checkpoint is kept in every case. With a group, when any rank fails all do: the others with
   * the reason that `group.failed` has.
   */
  async *run(options: RunOptions = {}): AsyncGenerator<IterationMetrics> {
    const team = new Team(this.#parts.group);
    let ended = false;
    try {
      const session = await Session.open(this.#parts, options, team);
      if (!session) {
        ended = true;
        return;
      }
      try {
        yield* session.iterations();
        ended = true;
      } finally {
        await session.close();
      }
    } catch (error) {
      ended = true;
      const cause = team.cause(error);
      team.abort(cause instanceof Error ? cause.message : String(cause));
      throw cause;
    } finally {
      // Whoever stops asking for iterations leaves the others waiting.
      if (!ended) team.abort(`rank ${team.rank} left the run before its end`);
    }
  }
}
