// A run folder with invented numbers, for tests of the report.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { RewardConfig } from "../../lib/grpo/config.js";
import type { SavedPicture } from "../../lib/grpo/evaluation.js";
import type { EvaluationMetrics, IterationMetrics } from "../../lib/grpo/metrics.js";
import { noSeconds, spread } from "../../lib/grpo/metrics.js";
import { completeConfig } from "../../lib/grpo/validate.js";
import { createPicture, encodePngSync } from "../../lib/image/index.js";

export function iterationLine(iteration: number): IterationMetrics {
  const mean = 0.3 + iteration / 100;
  return {
    type: "iteration",
    iteration,
    reward: spread([mean - 0.1, mean, mean + 0.1]),
    rewards: { clip: mean, taste: mean / 2 },
    advantage: spread([-1, 0, 1]),
    ratio: { ...spread([0.99, 1, 1.02]), maxDeviation: 0.02, firstUpdateMaxDeviation: 0 },
    clipFraction: { high: 0.1, low: 0.05 },
    loss: 0.01,
    gradientNorm: 0.4,
    learningRate: 1e-5,
    updates: 2,
    zeroVarianceGroups: iteration === 2 ? 1 : 0,
    rewardFailures: 0,
    skippedUpdates: 0,
    seconds: { ...noSeconds(), rollout: 2, update: 3, score: 0.5, total: 5.5 },
    imagesPerSecond: 4,
    modelFlops: 1e9,
    memory: { peak: 3 * 2 ** 30, held: 4 * 2 ** 30 },
  };
}

export function evaluationLine(iteration: number): EvaluationMetrics {
  const clip = 0.4 + iteration / 50;
  return {
    type: "evaluation",
    iteration,
    pictures: 4,
    rewards: { clip: spread([clip, clip]), taste: spread([1, 2]) },
    seconds: 1.5,
  };
}

export interface RunFolderOptions {
  iterations?: number;
  prompts?: string[];
  rewards?: RewardConfig[];
  /** Side of the pictures. */
  side?: number;
}

/** Evaluations are before the first iteration and after the last. */
export function writeRunFolder(folder: string, options: RunFolderOptions = {}): string {
  const { iterations = 6, prompts = ["a cat", "a dog"], rewards = [{ type: "clip" }], side = 16 } = options;
  const config = completeConfig({
    model: { path: "models/small" },
    prompts,
    rewards,
    iterations,
    evaluation: { every: iterations, prompts },
    output: { folder },
  });
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "config.json"), JSON.stringify({ hash: "0", config }));
  const lines = [
    evaluationLine(0),
    ...Array.from({ length: iterations }, (_, i) => iterationLine(i + 1)),
    evaluationLine(iterations),
  ];
  writeFileSync(join(folder, "metrics.jsonl"), lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
  for (const iteration of [0, iterations]) {
    const place = join(folder, "evaluation", String(iteration).padStart(6, "0"));
    mkdirSync(place, { recursive: true });
    const saved: SavedPicture[] = prompts.map((prompt, i) => ({
      file: `${i}.png`,
      prompt,
      scores: { clip: 0.1 * (i + iteration) },
    }));
    for (const [i, { file }] of saved.entries()) {
      const picture = createPicture(
        side,
        side,
        new Uint8Array(side * side * 3).fill(40 * i + 10 * iteration),
      );
      writeFileSync(join(place, file), encodePngSync(picture));
    }
    writeFileSync(join(place, "pictures.json"), JSON.stringify(saved));
  }
  return folder;
}
