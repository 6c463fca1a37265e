/** The acceptance run of training: both sides train, and their curves and last pictures are compared. */
import { join } from "node:path";
import { DanceError } from "../errors.js";
import type { TrainConfig } from "../grpo/config.js";
import { runningMean } from "../report/charts.js";
import { type Run, readRun } from "../report/run.js";
import { trainFromConfig } from "../train.js";
import { comparePictures, type PicturePair } from "./picture_pairs.js";
import { type Side, sideConfig } from "./side.js";

/** Smoothed curves may be this share apart. */
export const CURVE_LIMIT = 0.05;

export interface TrainingOptions {
  /** Iterations; default 200. */
  iterations?: number;
  /** Pixels of a token along a side. Default 16. */
  patch?: number;
  onProgress?: (what: string) => void;
}

export interface CurveDeviation {
  name: string;
  a: number[];
  b: number[];
  /** Spread within an iteration, where there is one. */
  spreadA: number[];
  spreadB: number[];
  smoothA: number[];
  smoothB: number[];
  /**
   * Largest distance of the smoothed curves over the scale: the size of B's curve (its root mean square), for the loss no less than that
   * of the terms that it is a mean of.
   */
  share: number;
  /** Iteration where that is, from 1. */
  worst: number;
}

export interface TrainingResult {
  a: Run;
  b: Run;
  curves: CurveDeviation[];
  pictures: PicturePair[];
  aligned: boolean;
  sentence: string;
}

async function trained(
  config: TrainConfig,
  side: Side,
  folder: string,
  options: TrainingOptions,
): Promise<Run> {
  const { iterations = 200 } = options;
  const own = sideConfig(config, side);
  await trainFromConfig(
    {
      ...own,
      iterations,
      output: { ...own.output, folder },
      evaluation: { ...own.evaluation, every: own.evaluation.every > 0 ? iterations : 0 },
    },
    {
      onIteration: ({ iteration }) =>
        options.onProgress?.(`${side.label}: iteration ${iteration} of ${iterations}`),
    },
  );
  return readRun(folder);
}

type Line = Run["iterations"][number];

const rootMeanSquare = (values: readonly number[]): number =>
  Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

/** A ratio is told to so much: log-probabilities are sums of many terms, in f32. */
const RATIO_ROUNDING = 1e-6;

/**
 * The size of what a loss is the mean of. Advantages of a group sum to zero, so that terms `-advantage * ratio` cancel, down to the spread of
 * the ratios. Where each iteration has one update all ratios are 1, and nothing but roundings is left.
 */
const lossTerms = ({ advantage, ratio }: Line): number => advantage.std * (ratio.std + RATIO_ROUNDING);

function curveOf(
  name: string,
  a: Run,
  b: Run,
  pick: (line: Line) => [number, number],
  terms: (line: Line) => number = () => 0,
): CurveDeviation {
  const [left, right] = [a.iterations.map(pick), b.iterations.map(pick)];
  const values = (side: [number, number][], which: 0 | 1) => side.map((each) => each[which]);
  const width = Math.max(3, 2 * Math.round(right.length / 20) + 1);
  const [smoothA, smoothB] = [runningMean(values(left, 0), width), runningMean(values(right, 0), width)];
  const scale = Math.max(rootMeanSquare(values(right, 0)), rootMeanSquare(b.iterations.map(terms)));
  const apart = smoothA.map((value, i) => Math.abs(value - smoothB[i]!));
  const most = apart.reduce((far, each) => (each <= far ? far : each), 0);
  return {
    name,
    a: values(left, 0),
    b: values(right, 0),
    spreadA: values(left, 1),
    spreadB: values(right, 1),
    smoothA,
    smoothB,
    share: most === 0 ? 0 : most / scale,
    worst: 1 + apart.indexOf(most),
  };
}

async function lastPictures(a: Run, b: Run, patch: number): Promise<PicturePair[]> {
  const [left, right] = [a.pictures.at(-1), b.pictures.at(-1)];
  if (!left || !right) return [];
  const pairs: PicturePair[] = [];
  for (const { file, prompt } of left.pictures) {
    const other = right.pictures.find((each) => each.file === file && each.prompt === prompt);
    if (other)
      pairs.push(await comparePictures(join(left.folder, file), join(right.folder, other.file), file, patch));
  }
  return pairs;
}

const percent = (share: number): string => `${Number((100 * share).toPrecision(2))} %`;

function judged(
  curves: CurveDeviation[],
  pictures: PicturePair[],
  iterations: number,
): { aligned: boolean; sentence: string } {
  const off = curves.filter(({ share }) => !(share <= CURVE_LIMIT));
  // Trained pictures drift apart as roundings do: a few that differ are no verdict, many are.
  const seen = pictures.filter(({ differs }) => differs).length;
  const aligned = off.length === 0 && seen * 4 <= pictures.length;
  const told = curves.map(({ name, share }) => `${name} within ${percent(share)}`).join(", ");
  const looks = pictures.length > 0 ? `, ${seen} of ${pictures.length} last pictures look different` : "";
  const start = aligned ? "Aligned" : "Not aligned";
  const where = off[0] ? `; ${off[0].name} is furthest apart at iteration ${off[0].worst}` : "";
  return {
    aligned,
    sentence: `${start}: over ${iterations} iterations ${told} (${percent(CURVE_LIMIT)} allowed)${where}${looks}.`,
  };
}

/** Compares two runs that are there already; `b` is what counts as right. @throws {DanceError} `ERR_DUMP` for runs of unequal length. */
export async function compareRuns(a: Run, b: Run, patch = 16): Promise<TrainingResult> {
  if (a.iterations.length !== b.iterations.length || a.iterations.length === 0) {
    throw new DanceError(
      "ERR_DUMP",
      `train: expected two runs of one length, got ${a.iterations.length} and ${b.iterations.length} iterations`,
    );
  }
  const curves = [
    curveOf("reward", a, b, ({ reward }) => [reward.mean, reward.std]),
    curveOf("loss", a, b, ({ loss }) => [loss, Number.NaN], lossTerms),
    curveOf("gradient norm", a, b, ({ gradientNorm }) => [gradientNorm, Number.NaN]),
  ];
  const pictures = await lastPictures(a, b, patch);
  return { a, b, curves, pictures, ...judged(curves, pictures, a.iterations.length) };
}

/** Trains on both sides, one after the other, into `out/a` and `out/b`. */
export async function alignTraining(
  config: TrainConfig,
  a: Side,
  b: Side,
  out: string,
  options: TrainingOptions = {},
): Promise<TrainingResult> {
  const right = await trained(config, b, join(out, "b"), options);
  const left = await trained(config, a, join(out, "a"), options);
  return compareRuns(left, right, options.patch);
}
