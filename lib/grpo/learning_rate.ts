/** How fast the model learns, update by update. */
import type { TrainConfig } from "./config.js";

/** Rate of update `done` (counted from 0): rises over the warm-up, then constant or linearly to 0 after the last update. */
export function learningRateAt(
  {
    learning,
    iterations,
    promptsPerIteration,
    groupSize,
  }: Pick<TrainConfig, "learning" | "iterations" | "promptsPerIteration" | "groupSize">,
  done: number,
): number {
  const warm = learning.warmup > 0 ? Math.min(1, done / learning.warmup) : 1;
  const updates = (iterations * promptsPerIteration * groupSize) / learning.accumulate;
  const left = learning.schedule === "linear" ? Math.max(0, 1 - done / updates) : 1;
  return learning.learningRate * warm * left;
}
