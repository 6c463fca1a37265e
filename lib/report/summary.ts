/** A run in a few numbers: what `summary.json` holds. */
import type { Run } from "./run.js";

/** Means by name; `reward` is the first of them. */
export type Measured = { reward: number } & Record<string, number>;

export interface TrainSummary {
  /** Of the first evaluation and of the last; null when nothing was measured. */
  before: Measured | null;
  after: Measured | null;
  /** `evaluation`: on held-out prompts; `training`: there was no evaluation, so these are the first and the last iteration. */
  measured: "evaluation" | "training";
  /** Iterations done. */
  iterations: number;
  /** Of iterations and evaluations, over all parts of a run that was resumed. */
  seconds: number;
  /** Where it ran, for people; absent when not known. */
  device?: string;
}

function evaluated({ evaluations }: Run, place: 0 | -1): Measured | null {
  const means = Object.entries(evaluations.at(place)?.rewards ?? {}).map(
    ([name, { mean }]) => [name, mean] as const,
  );
  const [first] = means;
  return first ? { ...Object.fromEntries(means), reward: first[1] } : null;
}

function trained({ iterations }: Run, place: 0 | -1): Measured | null {
  const line = iterations.at(place);
  return line ? { ...line.rewards, reward: line.reward.mean } : null;
}

export function summarize(run: Run): TrainSummary {
  const measured = run.evaluations.length > 0 ? "evaluation" : "training";
  const at = measured === "evaluation" ? evaluated : trained;
  const seconds =
    run.iterations.reduce((sum, line) => sum + line.seconds.total, 0) +
    run.evaluations.reduce((sum, line) => sum + line.seconds, 0);
  return {
    before: at(run, 0),
    after: at(run, -1),
    measured,
    iterations: run.iterations.at(-1)?.iteration ?? 0,
    seconds: Math.round(seconds * 1000) / 1000,
  };
}
