/** Which charts a report shows, and what is in them. */
import type { EvaluationMetrics, IterationMetrics, StageSeconds } from "../grpo/metrics.js";
import { chart } from "./chart.js";
import type { Run } from "./run.js";

/** Mean of each value and those around it. */
export function runningMean(values: number[], width: number): number[] {
  const half = Math.floor(width / 2);
  return values.map((_, i) => {
    const part = values.slice(Math.max(0, i - half), i + half + 1);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

type Pick = (line: IterationMetrics) => number;

const ITERATION = "iteration";

function rewardCharts(lines: IterationMetrics[]): string[] {
  const x = lines.map((line) => line.iteration);
  const of = (pick: Pick) => lines.map(pick);
  const mean = of((line) => line.reward.mean);
  const width = Math.max(3, 2 * Math.round(lines.length / 20) + 1);
  const low = of((line) => line.reward.mean - line.reward.std);
  const high = of((line) => line.reward.mean + line.reward.std);
  const smooth = { name: `running mean over ${width}`, values: runningMean(mean, width), color: 1 };
  const whole = chart({
    title: "Reward in training",
    note: "Mean of an iteration's pictures, with noise in every step; the band is one standard deviation to each side.",
    x,
    xName: ITERATION,
    series: [
      { name: "mean", values: mean, color: 1, faint: lines.length > 12 },
      ...(lines.length > 12 ? [smooth] : []),
    ],
    bands: [{ name: "mean \u00b1 std", low, high, color: 1 }],
  });
  const names = Object.keys(lines[0]?.rewards ?? {});
  if (names.length < 2) return [whole];
  const single = names.map((name, i) =>
    chart({
      title: `Reward in training: ${name}`,
      x,
      xName: ITERATION,
      series: [{ name, values: of((line) => line.rewards[name] ?? Number.NaN), color: 2 + (i % 7) }],
    }),
  );
  return [whole, ...single];
}

function evaluationCharts(lines: EvaluationMetrics[]): string[] {
  const names = Object.keys(lines[0]?.rewards ?? {});
  return names.map((name, i) => {
    const means = lines.map((line) => line.rewards[name]?.mean ?? Number.NaN);
    const errors = lines.map((line) => (line.rewards[name]?.std ?? 0) / Math.sqrt(line.pictures));
    const low = means.map((mean, k) => mean - errors[k]!);
    const high = means.map((mean, k) => mean + errors[k]!);
    const color = 1 + (i % 8);
    return chart({
      title: `Evaluation: ${name}`,
      note: `Mean over ${lines[0]!.pictures} pictures of held-out prompts, always from the same noise.`,
      x: lines.map((line) => line.iteration),
      xName: ITERATION,
      series: [{ name, values: means, color }],
      bands: [{ name: "\u00b1 standard error", low, high, color }],
      points: lines.length <= 60,
    });
  });
}

export const STAGES: readonly (keyof StageSeconds)[] = [
  "rollout",
  "decode",
  "score",
  "update",
  "communicate",
  "save",
  "encode",
  "evaluate",
];

const secondsOf = (lines: IterationMetrics[], stage: keyof IterationMetrics["seconds"]): number =>
  lines.reduce((sum, line) => sum + line.seconds[stage], 0);

/** Stages that took a thousandth of the time or more. */
export const usedStages = (lines: IterationMetrics[]): (keyof StageSeconds)[] =>
  STAGES.filter((stage) => secondsOf(lines, stage) * 1000 >= secondsOf(lines, "total"));

export const stageColor = (stage: keyof StageSeconds): number => 1 + STAGES.indexOf(stage);

function policyCharts(lines: IterationMetrics[]): string[] {
  const x = lines.map((line) => line.iteration);
  const of = (pick: Pick) => lines.map(pick);
  const rest = { x, xName: ITERATION };
  return [
    chart({
      ...rest,
      title: "Policy ratio",
      note: "New over old probability of a step. Before the first update of an iteration it is exactly 1.",
      series: [{ name: "mean", values: of((line) => line.ratio.mean), color: 3 }],
      bands: [
        {
          name: "min to max",
          low: of((line) => line.ratio.min),
          high: of((line) => line.ratio.max),
          color: 3,
        },
      ],
    }),
    chart({
      ...rest,
      title: "Clip fraction",
      note: "Share of steps whose gradient the clip range cut off.",
      least: 0,
      series: [
        { name: "above", values: of((line) => line.clipFraction.high), color: 2 },
        { name: "below", values: of((line) => line.clipFraction.low), color: 4 },
      ],
    }),
    chart({
      ...rest,
      title: "Gradient norm",
      note: "Before clipping, mean over an iteration's updates.",
      least: 0,
      series: [{ name: "gradient norm", values: of((line) => line.gradientNorm), color: 5 }],
    }),
    chart({
      ...rest,
      title: "Learning rate",
      least: 0,
      series: [{ name: "learning rate", values: of((line) => line.learningRate), color: 7 }],
    }),
  ];
}

function speedCharts(lines: IterationMetrics[]): string[] {
  const x = lines.map((line) => line.iteration);
  const series = usedStages(lines).map((stage) => ({
    name: stage,
    values: lines.map((line) => line.seconds[stage]),
    color: stageColor(stage),
  }));
  return [
    chart({ title: "Seconds per stage", x, xName: ITERATION, series, stacked: true }),
    chart({
      title: "Pictures per second",
      x,
      xName: ITERATION,
      least: 0,
      series: [{ name: "pictures per second", values: lines.map((line) => line.imagesPerSecond), color: 6 }],
    }),
  ];
}

export interface ChartGroup {
  title: string;
  charts: string[];
}

/** The charts of a run: what everybody wants to see, and the rest in groups. A group without charts is left out. */
export function chartGroups({ iterations, evaluations }: Run): { first: ChartGroup[]; rest: ChartGroup[] } {
  const evaluated = evaluationCharts(evaluations);
  const trained = rewardCharts(iterations);
  const filled = (groups: ChartGroup[]) =>
    groups
      .map(({ title, charts }) => ({ title, charts: charts.filter((entry) => entry !== "") }))
      .filter(({ charts }) => charts.length > 0);
  return {
    first: filled([{ title: "Reward", charts: [...evaluated.slice(0, 1), ...trained.slice(0, 1)] }]),
    rest: filled([
      { title: "Single rewards", charts: [...evaluated.slice(1), ...trained.slice(1)] },
      { title: "Learning", charts: policyCharts(iterations) },
      { title: "Time", charts: speedCharts(iterations) },
    ]),
  };
}
