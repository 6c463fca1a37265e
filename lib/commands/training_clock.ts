/** How long a training run will still take. */
import type { TrainConfig } from "../grpo/config.js";
import type { Progress } from "../grpo/trainer.js";
import { each, joined, left, monotonicSeconds, Pace } from "./pace.js";

/** Stages after an iteration, not in it. */
const BETWEEN: readonly string[] = ["evaluate", "save"];

export class TrainingClock {
  readonly #config: TrainConfig;
  readonly #now: () => number;
  readonly #pace = new Pace();
  /** Seconds of the latest evaluation. */
  #evaluation: number | undefined;
  /** When the iteration under way began; undefined: none is. */
  #began: number | undefined;
  #done = 0;

  constructor(config: TrainConfig, now: () => number = monotonicSeconds) {
    this.#config = config;
    this.#now = now;
  }

  progress({ iteration, stage }: Progress): void {
    // An iteration is over when the evaluation after it begins; its numbers come after that.
    if (iteration - 1 > this.#done) this.#began = undefined;
    this.#done = iteration - 1;
    if (stage === "rollout") this.#began ??= this.#now();
  }

  iteration(done: number, seconds: number): void {
    this.#done = done;
    this.#began = undefined;
    this.#pace.add(seconds);
  }

  evaluation(seconds: number): void {
    this.#evaluation = seconds;
  }

  #evaluationsLeft(): number {
    const { iterations, evaluation } = this.#config;
    if (evaluation.every === 0) return 0;
    const due = (iteration: number) => Math.floor(iteration / evaluation.every);
    // The last iteration is evaluated in any case.
    return due(iterations) - due(this.#done) + (iterations % evaluation.every === 0 ? 0 : 1);
  }

  /** Seconds until the end; undefined while there is nothing to go by. */
  secondsLeft(): number | undefined {
    const { mean } = this.#pace;
    if (mean === undefined) return undefined;
    const running = this.#began === undefined ? 0 : this.#now() - this.#began;
    const training = Math.max(0, (this.#config.iterations - this.#done) * mean - Math.min(running, mean));
    return training + this.#evaluationsLeft() * (this.#evaluation ?? 0);
  }

  /** `iteration 12/80 · update 40/96 · 3.2 s each · 3 min 40 s left` */
  line({ stage, iteration, done, all }: Progress): string {
    const { iterations } = this.#config;
    const { mean } = this.#pace;
    const rest = this.secondsLeft();
    const shown = BETWEEN.includes(stage) ? iteration - 1 : iteration;
    const parts = [
      stage === "encode" ? "preparing" : `iteration ${shown}/${iterations}`,
      all > 1 ? `${stage} ${done}/${all}` : stage,
      ...(mean === undefined ? [] : [each(mean)]),
      ...(rest === undefined ? [] : [left(rest)]),
    ];
    return joined(parts);
  }
}
