/** How long work that comes in like pieces will still take. */
import { duration } from "../report/html.js";

/** Measurements that the estimate looks back on. */
const WINDOW = 10;

export const monotonicSeconds = (): number => performance.now() / 1000;

/** `40 s each`, `3 min 20 s left`: what a progress line says of time. */
export const each = (seconds: number): string => `${duration(seconds)} each`;
export const left = (seconds: number): string => `${duration(seconds)} left`;

/** Parts of a progress line as one. */
export const joined = (parts: readonly string[]): string => parts.join(" \u00b7 ");

/** Mean seconds of a piece of work, by the latest measurements. */
export class Pace {
  readonly #latest: { seconds: number; pieces: number }[] = [];

  add(seconds: number, pieces = 1): void {
    this.#latest.push({ seconds, pieces });
    if (this.#latest.length > WINDOW) this.#latest.shift();
  }

  /** Undefined while there is nothing to go by. */
  get mean(): number | undefined {
    if (this.#latest.length === 0) return undefined;
    const sum = (key: "seconds" | "pieces") => this.#latest.reduce((total, entry) => total + entry[key], 0);
    return sum("seconds") / sum("pieces");
  }
}

/** Counts pieces of work that are done `batch` at a time. */
export class PieceClock {
  readonly #what: string;
  readonly #all: number;
  readonly #batch: number;
  readonly #now: () => number;
  readonly #pace = new Pace();
  #counted = 0;
  #since: number;

  constructor(what: string, all: number, batch = 1, now: () => number = monotonicSeconds) {
    this.#what = what;
    this.#all = all;
    this.#batch = batch;
    this.#now = now;
    this.#since = now();
  }

  /** `drawing 12/40 \u00b7 3.2 s each \u00b7 1 min 30 s left`, now that `done` are done. */
  line(done: number): string {
    // Those of a batch come all at once: only a whole one tells the pace.
    if (done > this.#counted && (done % this.#batch === 0 || done === this.#all)) {
      const now = this.#now();
      this.#pace.add(now - this.#since, done - this.#counted);
      this.#since = now;
      this.#counted = done;
    }
    const { mean } = this.#pace;
    const estimate = mean === undefined ? [] : [each(mean), left((this.#all - done) * mean)];
    return joined([`${this.#what} ${done}/${this.#all}`, ...estimate]);
  }
}
