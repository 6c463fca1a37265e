/** What the ranks of an iteration tell each other, and how their parts become a whole. */
import type { RewardScores } from "../rewards/scorer.js";
import { type DealConfig, type Seat, type Share, shareOf } from "./deal.js";
import type { EvaluationResult } from "./evaluation.js";
import type { StageSeconds } from "./metrics.js";
import type { SeenPictures } from "./picture_watch.js";
import { packNumbers, type Team, unpackNumbers } from "./team.js";
import type { UpdateReport } from "./update.js";

type Packed = (number | string)[];

export interface PackedScores {
  name: string;
  weight: number;
  scores: Packed;
  failures: string[];
}

export const packScores = (all: readonly RewardScores[]): PackedScores[] =>
  all.map((entry) => ({ ...entry, scores: packNumbers(entry.scores) }));

/** The scores of all ranks, in the order of the pictures' places. */
export function joinScores(parts: readonly { scores: PackedScores[]; places: number[] }[]): RewardScores[] {
  const rewards = parts.find(({ scores }) => scores.length > 0)?.scores ?? [];
  return rewards.map(({ name, weight }, reward) => {
    const scores: number[] = [];
    for (const part of parts) {
      const own = unpackNumbers(part.scores[reward]?.scores ?? []);
      for (const [i, place] of part.places.entries()) scores[place] = own[i]!;
    }
    const failures = parts.flatMap((part) => part.scores[reward]?.failures ?? []);
    return { name, weight, scores, failures };
  });
}

/** A rank's part of an iteration's numbers. */
export interface IterationPart {
  stop: boolean;
  seconds: StageSeconds;
  ratios: Packed;
  losses: Packed;
  clipped: [high: number, low: number];
  communication: UpdateReport["communication"];
  memory: UpdateReport["memory"] & { peak: number; held: number };
  pictures?: SeenPictures;
}

export function packReport(
  report: UpdateReport,
  rest: Pick<IterationPart, "stop" | "seconds" | "pictures"> & { device: { peak: number; held: number } },
): IterationPart {
  const { peak, held } = rest.device;
  return {
    stop: rest.stop,
    seconds: rest.seconds,
    ratios: packNumbers(report.ratios),
    losses: packNumbers(report.losses),
    clipped: [report.clippedHigh, report.clippedLow],
    communication: report.communication,
    memory: { ...report.memory, peak, held },
    ...(rest.pictures ? { pictures: rest.pictures } : {}),
  };
}

/** The largest of every number. */
function most<T extends object>(parts: readonly T[]): T {
  const keys = Object.keys(parts[0]!) as (keyof T)[];
  return Object.fromEntries(
    keys.map((key) => [key, Math.max(...parts.map((part) => part[key] as number))]),
  ) as T;
}

/** Update by update, the parts of the ranks one after the other: as if one rank had done all. */
function interleaved(parts: readonly Packed[], updates: number): number[] {
  const lists = parts.map(unpackNumbers);
  return Array.from({ length: updates }, (_, update) =>
    lists.flatMap((list) => {
      const length = list.length / updates;
      return list.slice(update * length, (update + 1) * length);
    }),
  ).flat();
}

export interface JoinedIteration {
  learned: UpdateReport;
  /** Of the slowest rank, stage by stage. */
  seconds: StageSeconds;
  /** The most of any rank. */
  memory: IterationPart["memory"];
  pictures: SeenPictures[];
  stop: boolean;
}

/** `own`: what this rank knows of what all have alike. */
export function joinIteration(own: UpdateReport, parts: readonly IterationPart[]): JoinedIteration {
  const ratios = interleaved(
    parts.map((part) => part.ratios),
    own.updates,
  );
  const sum = (place: 0 | 1) => parts.reduce((total, part) => total + part.clipped[place], 0);
  const memory = most(parts.map((part) => part.memory));
  const { gradients, state } = memory;
  return {
    learned: {
      ...own,
      ratios,
      losses: interleaved(
        parts.map((part) => part.losses),
        own.updates,
      ),
      firstRatios: ratios.slice(0, own.firstRatios.length * parts.length),
      clippedHigh: sum(0),
      clippedLow: sum(1),
      transitions: own.transitions * parts.length,
      communication: most(parts.map((part) => part.communication)),
      memory: { gradients, state },
    },
    seconds: most(parts.map((part) => part.seconds)),
    memory,
    pictures: parts.flatMap(({ pictures }) => pictures ?? []),
    stop: parts.some((part) => part.stop),
  };
}

/** The part of `count` things that are cut into runs of about equal length. */
export function sliceOf(count: number, { rank, size }: Seat): { first: number; end: number } {
  return { first: Math.floor((count * rank) / size), end: Math.floor((count * (rank + 1)) / size) };
}

/** Prompts of an iteration that a share has pictures of. */
export const groupsOf = ({ pictures }: Share): number[] => [...new Set(pictures.map(({ group }) => group))];

/** The exchanges of a run: one of rewards and one of numbers per iteration, one per evaluation. All ranks make them in the same order. */
export class Together {
  readonly #team: Team;
  readonly #config: DealConfig;

  constructor(team: Team, config: DealConfig) {
    this.#team = team;
    this.#config = config;
  }

  /** The scores of all pictures; undefined on all ranks when one has none, or was asked to stop. */
  async scores(
    iteration: number,
    own: RewardScores[] | undefined,
    stop: boolean,
  ): Promise<RewardScores[] | undefined> {
    const parts = await this.#team.gather(`iteration ${iteration}: rewards`, {
      stop: stop || own === undefined,
      scores: packScores(own ?? []),
    });
    if (parts.some((part) => part.stop)) return undefined;
    const { size } = this.#team;
    return joinScores(
      parts.map(({ scores }, rank) => {
        const { pictures } = shareOf(this.#config, { rank, size });
        return { scores, places: pictures.map(({ place }) => place) };
      }),
    );
  }

  /** The numbers of all ranks' updates. */
  async report(iteration: number, own: UpdateReport, part: IterationPart): Promise<JoinedIteration> {
    return joinIteration(own, await this.#team.gather(`iteration ${iteration}: update`, part));
  }

  /** The whole of an evaluation; undefined on all ranks when one gave it up. */
  async evaluation(
    iteration: number,
    own: EvaluationResult | undefined,
  ): Promise<EvaluationResult | undefined> {
    const parts = await this.#team.gather(`iteration ${iteration}: evaluation`, {
      stop: own === undefined,
      pictures: own?.pictures ?? 0,
      scores: packScores(own?.scores ?? []),
      saved: own?.saved ?? [],
    });
    if (parts.some((part) => part.stop)) return undefined;
    let place = 0;
    const placed = parts.map(({ pictures, scores }) => ({
      scores,
      places: Array.from({ length: pictures }, () => place++),
    }));
    return { pictures: place, scores: joinScores(placed), saved: parts.flatMap(({ saved }) => saved) };
  }
}
