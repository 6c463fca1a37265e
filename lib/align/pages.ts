/** Whole pages: of a comparison of dumps, and of the three acceptance runs. */
import { chart } from "../report/chart.js";
import { shortNumber } from "../report/html.js";
import type { Comparison } from "./compare.js";
import type { InferenceResult } from "./inference.js";
import {
  alignPage,
  differencesSection,
  findingsSection,
  picturesSection,
  tableSection,
  treeSection,
  warningsSection,
} from "./page.js";
import type { RewardResult } from "./reward.js";
import type { CurveDeviation, TrainingResult } from "./training.js";

const against = (a: string, b: string): string => `A: ${a} \u00b7 B: ${b} (counts as right)`;

export async function comparisonPage(comparison: Comparison): Promise<string> {
  const { a, b, findings, first, differences, pictures, warnings, aligned, sentence } = comparison;
  const told = ({ header }: typeof a) =>
    `${header.program}, ${header.device.name}, ${header.weights} weights`;
  return alignPage({
    title: aligned ? "Aligned" : "Not aligned",
    subtitle: against(told(a), told(b)),
    aligned,
    sentence,
    sections: [
      differencesSection(differences),
      warningsSection(warnings),
      treeSection(findings, first),
      await picturesSection("Pictures", pictures),
      findingsSection(findings),
    ],
  });
}

export async function inferencePage(result: InferenceResult): Promise<string> {
  const { a, b, steps, aligned, sentence } = result;
  const x = steps.map(({ step }) => step);
  const curves = [
    chart({
      title: "Structural similarity by step",
      note: "Of what the end would be after each step; 1 is equal.",
      x,
      xName: "step",
      points: true,
      series: [
        { name: "mean", values: steps.map(({ ssim }) => ssim.mean), color: 1 },
        { name: "least", values: steps.map(({ ssim }) => ssim.least), color: 2 },
      ],
    }),
    chart({
      title: "PSNR by step",
      note: "Decibels; equal pictures count as 100.",
      x,
      xName: "step",
      points: true,
      series: [
        { name: "mean", values: steps.map(({ psnr }) => psnr.mean), color: 1 },
        { name: "least", values: steps.map(({ psnr }) => psnr.least), color: 2 },
      ],
    }),
  ];
  const sections = [`<section><h2>Over the steps</h2><div class="charts">${curves.join("")}</div></section>`];
  const captionOf = (file: string) => b.prompts[Number.parseInt(file, 10)] ?? file;
  const shown = [...new Set([steps.length - 1, Math.floor((steps.length - 1) / 2), 0])].filter(
    (step) => step >= 0,
  );
  for (const step of shown) {
    const title = step === steps.length - 1 ? "The pictures" : `After step ${step}`;
    const { pairs } = steps[step]!;
    sections.push(
      await picturesSection(title, pairs, ({ file }) => captionOf(file), step === steps.length - 1 ? 12 : 4),
    );
  }
  return alignPage({ title: "Inference", subtitle: against(a.side, b.side), aligned, sentence, sections });
}

/** At most 500 values, of neighbours the one furthest from zero: a mean would hide what a deviation is looked at for. */
export function furthest(all: readonly number[]): { group: number; places: number[]; values: number[] } {
  const group = Math.ceil(all.length / 500);
  const places = Array.from({ length: Math.ceil(all.length / group) }, (_, part) => {
    let most = part * group;
    for (let i = most; i < Math.min(all.length, (part + 1) * group); i++)
      if (!(Math.abs(all[i]!) <= Math.abs(all[most]!))) most = i;
    return most;
  });
  return { group, places, values: places.map((place) => all[place]!) };
}

export function rewardPage(result: RewardResult, a: string, b: string): string {
  const columns = [
    { name: "reward" },
    ...["mean", "largest deviation", "share of the mean", "at picture"].map((name) => ({
      name,
      number: true,
    })),
  ];
  const rows = result.rewards.map(({ name, mean, maxAbsolute, share, worst }) => [
    name,
    [mean, shortNumber(mean)] as [number, string],
    [maxAbsolute, shortNumber(maxAbsolute)] as [number, string],
    [share, `${shortNumber(100 * share, 2)} %`] as [number, string],
    [worst, String(worst)] as [number, string],
  ]);
  const charts = result.rewards.map(({ name, a: left, b: right }) => {
    const { group, places, values: apart } = furthest(left.map((value, i) => value - right[i]!));
    return chart({
      title: `${name}: A \u2212 B`,
      note:
        group === 1
          ? "Per picture, in order."
          : `In order; of each ${group} pictures the one furthest apart.`,
      x: places,
      xName: "picture",
      series: [{ name: "A \u2212 B", values: apart, color: 1 }],
    });
  });
  const curves = `<section><h2>Deviations</h2><div class="charts">${charts.join("")}</div></section>`;
  const { aligned, sentence } = result;
  const sections = [tableSection("Rewards", columns, rows), curves];
  return alignPage({ title: "Reward", subtitle: against(a, b), aligned, sentence, sections });
}

function curveChart({ name, a, b, spreadA, spreadB, smoothA, smoothB }: CurveDeviation): string {
  const band = (side: string, means: number[], spread: number[], color: number) => ({
    name: `${side} \u00b1 std`,
    low: means.map((mean, i) => mean - spread[i]!),
    high: means.map((mean, i) => mean + spread[i]!),
    color,
  });
  const spreads = spreadB.every(Number.isFinite) ? [band("A", a, spreadA, 1), band("B", b, spreadB, 2)] : [];
  return chart({
    title: name,
    note: "Thin: each iteration; thick: running mean.",
    x: a.map((_, i) => i + 1),
    xName: "iteration",
    bands: spreads,
    series: [
      { name: "A", values: a, color: 1, faint: true },
      { name: "B", values: b, color: 2, faint: true },
      { name: "A, running mean", values: smoothA, color: 1 },
      { name: "B, running mean", values: smoothB, color: 2 },
    ],
  });
}

export async function trainingPage(result: TrainingResult, a: string, b: string): Promise<string> {
  const { curves, pictures, aligned, sentence } = result;
  const columns = [
    { name: "curve" },
    { name: "furthest apart", number: true },
    { name: "at iteration", number: true },
  ];
  const rows = curves.map(({ name, share, worst }) => [
    name,
    [share, `${shortNumber(100 * share, 2)} %`] as [number, string],
    [worst, String(worst)] as [number, string],
  ]);
  const sections = [
    `<section><h2>Curves</h2><div class="charts">${curves.map(curveChart).join("")}</div></section>`,
    tableSection("Deviation of the running means", columns, rows),
    await picturesSection("Last pictures, from the same noise", pictures),
  ];
  return alignPage({ title: "Training", subtitle: against(a, b), aligned, sentence, sections });
}
