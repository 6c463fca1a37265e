// Groups: of one, of several in one process, their engines, and real collectives between processes.
import { describe, expect, it } from "vitest";
import { compareConfigs } from "../../lib/distributed/compare.js";
import { checkFacts, chooseEngine, type RankFacts, readFacts } from "../../lib/distributed/engine.js";
import { type GroupOptions, initGroup } from "../../lib/distributed/group.js";
import { hostKey, localPlace } from "../../lib/distributed/host.js";
import type { Group } from "../../lib/distributed/types.js";
import { compiled, freePort, startRanks } from "../support/processes.js";

compiled();

/** Groups of one run, all in this process. */
async function groups(size: number, more: GroupOptions = {}): Promise<Group[]> {
  const port = await freePort();
  return Promise.all(
    Array.from({ length: size }, (_, rank) =>
      initGroup({ rank, size, port, run: "test", timeoutSeconds: 20, onWarning: () => {}, ...more }),
    ),
  );
}
const closeAll = (all: Group[]) => Promise.all(all.map((each) => each.close()));

describe("a group of one", () => {
  it("keeps the same rules, without a network", async () => {
    const group = await initGroup({ rank: 0, size: 1 });
    expect(group).toMatchObject({ rank: 0, size: 1, localRank: 0, localSize: 1, communicator: undefined });
    const value = { a: [1, undefined], b: undefined };
    expect(await group.exchange("x", value)).toEqual([{ a: [1, null] }]);
    expect(await group.exchange("x", undefined)).toEqual([null]);
    group.abort("nobody hears it");
    expect(group.failed.aborted).toBe(false);
    await compareConfigs(group, { seed: 1 });
    await group.close();
  });
});

describe("a group of several", () => {
  it("exchanges values as JSON, and closes in any order", async () => {
    const all = await groups(3);
    const values = await Promise.all(
      all.map((each) => each.exchange("x", { rank: each.rank, list: [each.rank] })),
    );
    const expected = [0, 1, 2].map((rank) => ({ rank, list: [rank] }));
    expect(values).toEqual([expected, expected, expected]);
    expect(all.map(({ localRank, localSize }) => [localRank, localSize])).toEqual([
      [0, 3],
      [1, 3],
      [2, 3],
    ]);
    // Rank 0 serves: it stays until the others have left.
    const first = all[0]!.close();
    await Promise.all(all.slice(1).map((each) => each.exchange("rest", 1).catch((error) => error.message)));
    await Promise.all([first, all[1]!.close(), all[2]!.close()]);
  });

  it("fails together", async () => {
    const all = await groups(3);
    const reasons = all.map(
      (each) => new Promise((done) => each.failed.addEventListener("abort", done, { once: true })),
    );
    all[1]!.abort("out of memory");
    await Promise.all(reasons);
    for (const { failed } of all)
      expect(failed.reason).toMatchObject({
        code: "ERR_COMMUNICATION",
        message: expect.stringMatching(/^rank 1: ended by itself.*: out of memory$/),
      });
    await closeAll(all);
  });

  it("keeps the listener for uncaught errors only while it is open", async () => {
    const before = process.listenerCount("uncaughtExceptionMonitor");
    const all = await groups(2);
    expect(process.listenerCount("uncaughtExceptionMonitor")).toBe(before + 2);
    await closeAll(all);
    expect(process.listenerCount("uncaughtExceptionMonitor")).toBe(before);
  });

  it("wants the secret of the run", async () => {
    const port = await freePort();
    const both = await Promise.allSettled([
      initGroup({ rank: 0, size: 2, port, secret: "a", timeoutSeconds: 0.5, onWarning: () => {} }),
      initGroup({ rank: 1, size: 2, port, secret: "b", timeoutSeconds: 20 }),
    ]);
    expect(both.map((each) => (each as PromiseRejectedResult).reason.message)).toEqual([
      'exchange "start": expected all ranks within 0.5 s, got nothing of rank 1 (rank 1 never joined)',
      expect.stringContaining("expected the secret of the run, got another"),
    ]);
  });

  it("refuses impossible options before anybody is asked", async () => {
    const wrong: [GroupOptions, string][] = [
      [{ timeoutSeconds: 0 }, "group: timeoutSeconds: expected a number above 0, got 0"],
      [{ silenceSeconds: Number.NaN }, "group: silenceSeconds: expected a number above 0, got NaN"],
      [{ collectives: { cpu: { timeoutSeconds: 0 } } }, "cpu.timeoutSeconds: expected a whole number"],
      [{ rank: 3, size: 2 }, "group: rank: expected a whole number from 0 to 1, got 3"],
    ];
    for (const [options, message] of wrong)
      await expect(initGroup(options)).rejects.toMatchObject({
        code: "ERR_OPTION",
        message: expect.stringContaining(message),
      });
  });

  it("compares configurations field by field", async () => {
    const all = await groups(2);
    const base = {
      seed: 1,
      device: { name: "cpu" },
      sampling: { steps: 8, eta: 0.3 },
      prompts: Array(100).fill("x"),
    };
    const compare = (configs: object[]) =>
      Promise.allSettled(all.map((each, rank) => compareConfigs(each, configs[rank]!))).then((settled) =>
        settled.map((each) => (each as PromiseRejectedResult).reason?.message),
      );
    // The order of fields and the device's name do not count.
    const same = {
      sampling: { eta: 0.3, steps: 8 },
      prompts: base.prompts,
      device: { name: "cuda:1" },
      seed: 1,
    };
    expect(await compare([base, same])).toEqual([undefined, undefined]);
    const other = {
      ...base,
      sampling: { steps: 8, eta: 0.5, shift: 3 },
      prompts: [...base.prompts.slice(1), "y"],
    };
    for (const message of await compare([base, other])) {
      expect(message).toMatch(
        /^configuration: expected the same on all ranks, got prompts: \["x".*\u2026 on rank 0, \["x".*; sampling\.eta: 0\.3 on rank 0, 0\.5 on rank 1; sampling\.shift: nothing on rank 0, 3 on rank 1$/,
      );
    }
    await closeAll(all);
  });
});

describe("the engine", () => {
  const facts = (more: Partial<RankFacts>[]): RankFacts[] =>
    more.map((each) => ({ host: "a", version: "1", device: "cpu", engine: "auto", ...each }));

  const CHOICES: [Partial<RankFacts>[], string][] = [
    [[{}, {}], "shared-memory"],
    [[{}, { host: "b" }], "gloo"],
    [[{ engine: "gloo" }, { engine: "gloo" }], "gloo"],
    [[{ device: "cuda" }, { device: "cuda", host: "b" }], "nccl"],
    [[{ device: "ascend" }], "hccl"],
  ];
  it.each(CHOICES)("%j: %s", (ranks, engine) => {
    expect(chooseEngine(facts(ranks))).toBe(engine);
  });

  it("has to fit the device and the hosts", () => {
    const wrong: [Partial<RankFacts>[], string][] = [
      [[{ engine: "nccl" }], "group: engine: expected shared-memory, gloo for cpu, got nccl"],
      [[{ device: "constructor" }], "group: expected a device of cpu, cuda, ascend, got constructor"],
      [
        [{ engine: "shared-memory" }, { engine: "shared-memory", host: "b" }],
        "group: engine shared-memory: expected all ranks on one host, got rank 1 on another",
      ],
    ];
    for (const [ranks, message] of wrong) expect(() => chooseEngine(facts(ranks))).toThrow(message);
  });

  it("needs ranks that agree", () => {
    checkFacts(facts([{}, { host: "b" }]));
    const wrong: [Partial<RankFacts>[], string][] = [
      [
        [{}, { version: "2" }, {}],
        "group: danceflux: expected the same on all ranks, got 1 (ranks 0, 2), 2 (rank 1)",
      ],
      [
        [{}, { device: null }],
        "group: device: expected the same on all ranks, got cpu (rank 0), none (rank 1)",
      ],
      [
        [{}, { engine: "gloo" }],
        "group: engine: expected the same on all ranks, got auto (rank 0), gloo (rank 1)",
      ],
    ];
    for (const [ranks, message] of wrong) expect(() => checkFacts(facts(ranks))).toThrow(message);
    expect(() => readFacts({ host: 1 }, 3)).toThrow("expected to hear who rank 3 is, got something else");
    expect(() => readFacts(null, 3)).toThrow("rank 3");
  });

  it("knows the ranks of one host", () => {
    expect(hostKey()).toBe(hostKey());
    expect(localPlace(["a", "b", "a", "b", "b"], 3)).toEqual({ localRank: 1, localSize: 3 });
  });
});

describe("collectives between processes", () => {
  const run = async (action: string, engine: string, env: Record<string, string> = {}) => {
    const ranks = await startRanks(3, [action, "1", engine], { DANCEFLUX_TIMEOUT_SECONDS: "30", ...env });
    const others = await Promise.all([0, 2].map((rank) => ranks[rank]!.ended));
    ranks[1]!.child.kill("SIGKILL");
    return others;
  };

  it("add up in shared memory", async () => {
    for (const { code, error, lines } of await run("none", "auto")) {
      expect({ code, error }).toEqual({ code: 0, error: "" });
      expect(lines.at(-2)).toEqual({ round: 2, values: [0, 1, 2], sum: [6, 30] });
    }
  });

  it("end at once when the group knows that a rank is lost", async () => {
    for (const { code, lines } of await run("killInSum", "shared-memory")) {
      expect(code).toBe(1);
      expect(lines.at(-1)).toMatchObject({
        code: "ERR_COMMUNICATION",
        error: expect.stringMatching(/rank 1/),
      });
    }
  });

  it("end at their own deadline when a rank does not come", async () => {
    for (const { code, lines } of await run("absent", "shared-memory", {
      DANCEFLUX_COLLECTIVE_TIMEOUT: "1",
    })) {
      expect(code).toBe(1);
      expect(lines.at(-1)).toMatchObject({
        code: "ERR_COMMUNICATION",
        error: expect.stringMatching(/rank 1/),
      });
    }
  });

  it("say which plugin is missing", async () => {
    for (const { code, lines } of await run("none", "gloo", { DANCEFLUX_DISABLE_BACKENDS: "all" })) {
      expect(code).toBe(1);
      expect(lines.at(-1)!.error).toMatch(/engine gloo: gloo: /);
    }
  });
});
