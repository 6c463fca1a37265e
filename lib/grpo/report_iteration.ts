/** From what an iteration did to its line of metrics. */
import { mixture, type RewardScores } from "../rewards/scorer.js";
import type { SamplePlan } from "../sample/sampler.js";
import type { Advantages } from "./advantage.js";
import { forwardFlops } from "./cost.js";
import { type IterationMetrics, type StageSeconds, spread } from "./metrics.js";
import type { PictureReport } from "./picture_watch.js";
import type { TrainerParts } from "./trainer.js";
import type { UpdateReport } from "./update.js";

export interface IterationFacts {
  iteration: number;
  plan: SamplePlan;
  scores: RewardScores[];
  /** Scores that are missing, over all rewards. */
  rewardFailures: number;
  judged: Advantages;
  learned: UpdateReport;
  seconds: StageSeconds;
  textTokens: number;
  pictures?: PictureReport | undefined;
  total: number;
  ranks: number;
  /** The most of any rank. */
  memory: { peak: number; held: number };
}

const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);
const deviation = (ratios: number[]) =>
  ratios.reduce((most, ratio) => Math.max(most, Math.abs(ratio - 1)), 0);

export function iterationMetrics({ pipeline }: TrainerParts, facts: IterationFacts): IterationMetrics {
  const { plan, scores, judged, learned, seconds } = facts;
  const rewards = mixture(scores);
  const forward = forwardFlops(pipeline.config, plan.grid.rows * plan.grid.columns, facts.textTokens);
  // A backward pass costs two forward ones; what is recomputed is overhead and not counted.
  const flops = forward * (rewards.length * plan.kinds.length + 3 * learned.transitions);
  const { peak, held } = facts.memory;
  return {
    type: "iteration",
    iteration: facts.iteration,
    reward: spread(rewards),
    rewards: Object.fromEntries(scores.map((entry) => [entry.name, mean(entry.scores)])),
    advantage: spread(judged.values),
    ratio: {
      ...spread(learned.ratios),
      maxDeviation: deviation(learned.ratios),
      firstUpdateMaxDeviation: deviation(learned.firstRatios),
    },
    clipFraction: {
      high: learned.clippedHigh / learned.transitions,
      low: learned.clippedLow / learned.transitions,
    },
    loss: mean(learned.losses),
    gradientNorm: mean(learned.gradientNorms),
    learningRate: learned.learningRate,
    updates: learned.updates,
    zeroVarianceGroups: judged.zeroVarianceGroups,
    rewardFailures: facts.rewardFailures,
    skippedUpdates: learned.skipped,
    seconds: { ...seconds, total: facts.total },
    imagesPerSecond: rewards.length / facts.total,
    modelFlops: flops / (seconds.rollout + seconds.update),
    memory: { peak, held, gradients: learned.memory.gradients, optimizer: learned.memory.state },
    ...(facts.ranks > 1 ? { distributed: { ranks: facts.ranks, ...learned.communication } } : {}),
    ...(facts.pictures ? { pictures: facts.pictures } : {}),
  };
}
