// Ranks as real processes: killed, stopped, throwing, late, with another configuration. The others end in time and say who it was, and where.
import { describe, expect, it } from "vitest";
import { compiled, type Ended, startRanks } from "../support/processes.js";

compiled();

/** All ranks of a run with two good rounds, after which rank `culprit` does `action`; a stopped one is killed at the end. */
async function run(
  size: number,
  action: string,
  culprit: number,
  env: Record<string, string>,
): Promise<Ended[]> {
  const ranks = await startRanks(size, [action, String(culprit)], {
    DANCEFLUX_TIMEOUT_SECONDS: "30",
    ...env,
  });
  const others = await Promise.all(
    ranks.map(({ ended }, rank) => (rank === culprit && action === "stop" ? null : ended)),
  );
  if (action === "stop") ranks[culprit]!.child.kill("SIGKILL");
  return Promise.all(others.map((each, rank) => each ?? ranks[rank]!.ended));
}

const errorOf = ({ lines }: Ended) => String(lines.at(-1)?.error);

describe("three processes", () => {
  it("exchange and leave in peace", async () => {
    for (const [rank, { code, lines, error }] of (await run(3, "none", -1, {})).entries()) {
      expect(error).toBe("");
      expect(code).toBe(0);
      expect(lines[0]).toEqual({ rank, size: 3, localRank: rank, localSize: 3 });
      expect(lines.at(-2)).toEqual({ round: 2, values: [0, 1, 2] });
    }
  });

  const LOST: [string, number, RegExp, Record<string, string>?][] = [
    ["kill", 1, /rank 1: lost (in exchange "round 2"|after exchange "round 1"): its connection/],
    ["kill", 0, /^exchange "round 2": rank 0, which keeps the rendezvous at .*: the connection/],
    ["exit", 2, /rank 2: lost (in exchange "round 2"|after exchange "round 1"): its connection/],
    ["stop", 1, /rank 1: lost .*: not heard of for 1 s: it is stopped/, { DANCEFLUX_SILENCE_SECONDS: "1" }],
    [
      "stop",
      0,
      /rank 0, which keeps .*: not heard of for 1 s: its process is stopped/,
      { DANCEFLUX_SILENCE_SECONDS: "1" },
    ],
    ["throw", 1, /rank 1: ended by itself .*: Error: no luck$/],
    ["throw", 0, /rank 0: ended by itself .*: Error: no luck$/],
    ["reject", 2, /rank 2: ended by itself .*: Error: no luck either$/],
  ];
  it.each(LOST)("learn that a rank is lost: %s %i", async (action, culprit, message, env = {}) => {
    const all = await run(3, action, culprit, env);
    for (const [rank, ended] of all.entries()) {
      if (rank === culprit) continue;
      expect(ended.code).toBe(1);
      expect(ended.lines.at(-1)).toMatchObject({
        code: "ERR_COMMUNICATION",
        error: expect.stringContaining("round 2"),
      });
      expect(errorOf(ended)).toMatch(message);
    }
    if (action === "kill") expect(all[culprit]).toMatchObject({ signal: "SIGKILL" });
    if (action === "throw") expect(all[culprit]!.error).toContain("Error: no luck");
  });

  it("name the one that is late", async () => {
    for (const [rank, ended] of (await run(3, "late", 1, { DANCEFLUX_TIMEOUT_SECONDS: "2" })).entries()) {
      const expected =
        rank === 1
          ? 'exchange "round 2"'
          : 'exchange "round 2": expected all ranks within 2 s, got nothing of rank 1';
      expect(errorOf(ended)).toContain(expected);
    }
  });

  it("name the one with another configuration, and hide what is secret", async () => {
    for (const ended of await run(3, "config", 1, {})) {
      expect(ended.lines.at(-1)).toMatchObject({ code: "ERR_OPTION" });
      expect(errorOf(ended)).toBe(
        "configuration: expected the same on all ranks, got seed: 1 on ranks 0, 2, 2 on rank 1; " +
          "token: (hidden) on rank 0, (hidden) on rank 1, (hidden) on rank 2",
      );
    }
  });

  it("name the one that never came", async () => {
    const ranks = await startRanks(3, ["none", "-1"], { DANCEFLUX_TIMEOUT_SECONDS: "2" });
    ranks[2]!.child.kill("SIGKILL");
    for (const { ended } of ranks.slice(0, 2))
      expect(errorOf(await ended)).toBe(
        'exchange "start": expected all ranks within 2 s, got nothing of rank 2 (rank 2 never joined)',
      );
  });
});
