// Who makes which pictures, and how the parts of the ranks become a whole again.
import { describe, expect, it } from "vitest";
import { type DealConfig, shareOf } from "../lib/grpo/deal.js";
import { noSeconds } from "../lib/grpo/metrics.js";
import { packNumbers, Team, unpackNumbers } from "../lib/grpo/team.js";
import {
  groupsOf,
  joinIteration,
  joinScores,
  packReport,
  packScores,
  sliceOf,
} from "../lib/grpo/together.js";
import type { UpdateReport } from "../lib/grpo/update.js";
import { rankDevice } from "../lib/rank_device.js";

const config = (
  promptsPerIteration: number,
  groupSize: number,
  accumulate: number,
  more: Partial<DealConfig["distributed"]> = {},
): DealConfig => ({
  promptsPerIteration,
  groupSize,
  learning: { accumulate },
  distributed: {
    sharding: "none",
    collective: "fast",
    bucketMiB: 25,
    groupSpansRanks: false,
    overlap: true,
    ...more,
  },
});

const sharesOf = (given: DealConfig, size: number) =>
  Array.from({ length: size }, (_, rank) => shareOf(given, { rank, size }));

/** Places that each update takes, over all ranks in order. */
const updatesOf = (given: DealConfig, size: number): number[][] => {
  const shares = sharesOf(given, size);
  const updates = shares[0]!.pictures.length / shares[0]!.perUpdate;
  return Array.from({ length: updates }, (_, update) =>
    shares.flatMap(({ pictures, perUpdate }) =>
      pictures.slice(update * perUpdate, (update + 1) * perUpdate).map(({ place }) => place),
    ),
  );
};

const refusal = (given: DealConfig, size: number): string => {
  try {
    shareOf(given, { rank: 0, size });
  } catch (error) {
    return (error as Error).message;
  }
  return "none";
};

describe("dealing pictures", () => {
  const cases = [
    config(8, 12, 96),
    config(8, 12, 48),
    config(4, 4, 16),
    config(1, 12, 12, { groupSpansRanks: true }),
    config(2, 6, 4, { groupSpansRanks: true }),
    config(16, 12, 64), // DanceGRPO on 16 devices
  ];
  it.each(cases)(
    "loses and repeats none: $promptsPerIteration x $groupSize, $learning.accumulate",
    (given) => {
      const all = given.promptsPerIteration * given.groupSize;
      for (const size of [1, 2, 4]) {
        if (refusal(given, size) !== "none") continue;
        const pictures = sharesOf(given, size).flatMap((share) => share.pictures);
        expect(pictures.map(({ place }) => place).sort((a, b) => a - b)).toEqual(
          Array.from({ length: all }, (_, i) => i),
        );
        for (const { group, index, place } of pictures) expect(group * given.groupSize + index).toBe(place);
      }
    },
  );

  it.each(cases.slice(0, 5))(
    "makes updates of the same pictures in the same order at any number of ranks: $promptsPerIteration x $groupSize, $learning.accumulate",
    (given) => {
      const alone = updatesOf(given, 1);
      const fitting = [2, 4].filter((size) => refusal(given, size) === "none");
      expect(fitting.length).toBeGreaterThan(0);
      for (const size of fitting) expect(updatesOf(given, size)).toEqual(alone);
    },
  );

  it("keeps groups whole unless they may span ranks", () => {
    for (const given of [config(8, 12, 96), config(16, 12, 64)]) {
      const owners = sharesOf(given, 4).map((share) => groupsOf(share));
      expect(owners.flat().sort((a, b) => a - b)).toEqual(
        Array.from({ length: given.promptsPerIteration }, (_, i) => i),
      );
    }
    const spanning = sharesOf(config(1, 12, 12, { groupSpansRanks: true }), 4);
    expect(spanning.map((share) => groupsOf(share))).toEqual([[0], [0], [0], [0]]);
    expect(spanning[1]!.pictures.map(({ index }) => index)).toEqual([3, 4, 5]);
  });

  it("tells what does not fit", () => {
    expect(refusal(config(3, 4, 12), 2)).toBe(
      "config: promptsPerIteration: expected a multiple of the 2 ranks, got 3",
    );
    expect(refusal(config(3, 4, 3, { groupSpansRanks: true }), 2)).toBe(
      "config: learning.accumulate: expected a multiple of the 2 ranks, got 3",
    );
    expect(refusal(config(4, 12, 16, { collective: "ordered" }), 2)).toBe(
      "config: learning.accumulate: expected a multiple of groupSize times ranks, 24, for ordered sums, got 16",
    );
    expect(refusal(config(4, 12, 16, { collective: "ordered", groupSpansRanks: true }), 2)).toBe("none");
    expect(refusal(config(4, 12, 16, { collective: "ordered" }), 1)).toBe("none");
  });
});

describe("what ranks tell each other", () => {
  it("survives JSON, numbers that are none too", () => {
    const numbers = [0.1, -0, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 1e-45];
    const back = unpackNumbers(JSON.parse(JSON.stringify(packNumbers(numbers))));
    expect(back.map((value, i) => Object.is(value + 0, numbers[i]! + 0))).toEqual(numbers.map(() => true));
  });

  it("is put in the places of the pictures", () => {
    const part = (scores: number[], failures: string[] = []) =>
      packScores([{ name: "clip", weight: 2, scores, failures }]);
    const joined = joinScores([
      { scores: part([10, Number.NaN], ["late"]), places: [0, 2] },
      { scores: part([11, 13]), places: [1, 3] },
      { scores: [], places: [] }, // a rank without pictures
    ]);
    expect(joined).toEqual([
      { name: "clip", weight: 2, scores: [10, 11, Number.NaN, 13], failures: ["late"] },
    ]);
  });

  it("is the report of one rank that did all", () => {
    const report = (ratios: number[], clippedHigh: number): UpdateReport => ({
      updates: 2,
      skipped: 0,
      ratios,
      losses: ratios.map((ratio) => -ratio),
      firstRatios: ratios.slice(0, 2),
      clippedHigh,
      clippedLow: 1,
      gradientNorms: [3, 4],
      learningRate: 1,
      transitions: 4,
      communication: {
        secondsInFlight: clippedHigh,
        secondsWaited: 1,
        bytes: 8,
        collectives: 2,
        overlapped: 1,
      },
      memory: { gradients: 10 * clippedHigh, state: 7 },
    });
    const parts = [report([1, 2, 5, 6], 2), report([3, 4, 7, 8], 5)].map((own, rank) =>
      packReport(own, {
        stop: rank === 1,
        seconds: { ...noSeconds(), update: rank },
        device: { peak: rank, held: 9 },
      }),
    );
    const { learned, seconds, memory, stop } = joinIteration(report([1, 2, 5, 6], 2), parts);
    expect(learned.ratios).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(learned.losses).toEqual([-1, -2, -3, -4, -5, -6, -7, -8]);
    expect(learned.firstRatios).toEqual([1, 2, 3, 4]);
    expect(learned).toMatchObject({ clippedHigh: 7, clippedLow: 2, transitions: 8, gradientNorms: [3, 4] });
    expect(learned.communication.secondsInFlight).toBe(5);
    expect([seconds.update, memory.peak, memory.gradients, stop]).toEqual([1, 1, 50, true]);
  });

  it("is cut into runs that make a whole", () => {
    for (const [count, size] of [
      [7, 3],
      [2, 4],
      [0, 2],
      [12, 4],
    ] as const) {
      const slices = Array.from({ length: size }, (_, rank) => sliceOf(count, { rank, size }));
      expect(slices[0]!.first).toBe(0);
      for (const [i, { first }] of slices.entries()) if (i > 0) expect(first).toBe(slices[i - 1]!.end);
      expect(slices.at(-1)!.end).toBe(count);
    }
  });

  it("is what was said, without a group", async () => {
    const team = new Team();
    expect(await team.gather("all", Number.NaN)).toEqual([Number.NaN]);
    expect(team).toMatchObject({ rank: 0, size: 1, isFirst: true });
    const { signal } = new AbortController();
    expect(team.signal(signal)).toBe(signal);
    expect(team.cause("mine")).toBe("mine");
  });
});

describe("the device of a rank", () => {
  const place = (localRank: number, localSize: number) => ({ size: 8, localRank, localSize });
  const host = { allowed: 8, all: 8, threads: undefined };
  it("is the one with its number on the host", () => {
    expect(rankDevice({ name: "cuda" }, place(3, 4), host).name).toBe("cuda:3");
    expect(rankDevice({ name: "ascend" }, place(0, 1), host).name).toBe("ascend:0");
    expect(rankDevice({ name: "ascend:5" }, place(0, 1), host).name).toBe("ascend:5");
    expect(
      rankDevice({ name: "cuda" }, { size: 1, localRank: undefined, localSize: undefined }, host).name,
    ).toBe("cuda");
    expect(() => rankDevice({ name: "cuda:0" }, place(1, 2), host)).toThrow(
      'config: device.name: expected a device without a number for 2 ranks on a host, got "cuda:0"',
    );
  });

  it("is an equal part of the CPUs, unless told otherwise", () => {
    expect(rankDevice({ name: "cpu" }, place(1, 4), host).options).toEqual({ threads: 2 });
    expect(rankDevice({ name: "cpu" }, place(1, 32), host).options).toEqual({ threads: 1 });
    expect(rankDevice({ name: "cpu", threads: 5 }, place(1, 4), host).options).toEqual({ threads: 5 });
    expect(rankDevice({ name: "cpu" }, place(1, 4), { ...host, threads: "3" }).options).toEqual({});
    expect(rankDevice({ name: "cpu" }, place(1, 4), { ...host, allowed: 2 }).options).toEqual({}); // bound already
  });
});
