// Recording and looking at pictures on several ranks: real processes, under every way of being launched.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { compareDumps } from "../lib/align/compare.js";
import { readDump } from "../lib/align/index.js";
import { testFolder } from "./support/device.js";
import { compiled, dist, freePort, start } from "./support/processes.js";
import { allEnded, startTraining, writeTinyConfig } from "./support/training_ranks.js";

const folder = testFolder();
const at = (name: string) => join(folder, name);
const config = writeTinyConfig(at("model"));

compiled();

type Variables = (rank: number, size: number, port: string) => Record<string, string>;

/** What each launcher tells a rank. */
const LAUNCHERS: Record<string, Variables> = {
  torchrun: (rank, size, port) => ({
    RANK: String(rank),
    WORLD_SIZE: String(size),
    MASTER_ADDR: "127.0.0.1",
    MASTER_PORT: port,
  }),
  Slurm: (rank, size, port) => ({
    SLURM_PROCID: String(rank),
    SLURM_NTASKS: String(size),
    SLURM_STEP_ID: "0",
    SLURM_JOB_ID: "7",
    SLURM_LOCALID: String(rank),
    MASTER_ADDR: "127.0.0.1",
    MASTER_PORT: port,
  }),
  "Open MPI": (rank, size, port) => ({
    OMPI_COMM_WORLD_RANK: String(rank),
    OMPI_COMM_WORLD_SIZE: String(size),
    OMPI_COMM_WORLD_LOCAL_RANK: String(rank),
    OMPI_COMM_WORLD_LOCAL_SIZE: String(size),
    MASTER_PORT: port,
  }),
  Kubernetes: (rank, size, port) => ({
    JOB_COMPLETION_INDEX: String(rank),
    WORLD_SIZE: String(size),
    MASTER_ADDR: "127.0.0.1",
    MASTER_PORT: port,
  }),
};

const record = (out: string, ...more: string[]) => [
  join(dist, "cli.js"),
  "align",
  "record",
  config,
  "--out",
  out,
  "--level",
  "stage",
  ...more,
];

async function recordOn(size: number, variables: Variables, args: string[]) {
  const port = String(await freePort());
  return allEnded(
    Array.from({ length: size }, (_, rank) =>
      start(process.execPath, args, { ...variables(rank, size, port), DANCEFLUX_THREADS: "1" }),
    ),
  );
}

describe("align record on several ranks", () => {
  it("is started by danceflux launch", async () => {
    const launch = [
      join(dist, "cli.js"),
      "launch",
      "--nproc-per-node",
      "2",
      "--",
      ...record(at("launched")).slice(1),
    ];
    const [ended] = await allEnded([start(process.execPath, launch, { DANCEFLUX_THREADS: "1" })]);
    expect([ended!.code, ended!.out]).toEqual([0, expect.stringMatching(/recorded .*rank-0/)]);
    expect((await readDump(at("launched/rank-0"))).complete).toBe(true);
  });

  it.each(Object.keys(LAUNCHERS))("knows its rank under %s", async (name) => {
    const out = at(`out-${name}`);
    const ends = await recordOn(2, LAUNCHERS[name]!, record(out, "--ranks", "1"));
    expect(ends.map(({ code, error }) => [code, error.includes("Error")])).toEqual([
      [0, false],
      [0, false],
    ]);
    expect(ends[0]!.out).toBe("");
    expect(ends[1]!.out).toMatch(/^recorded .*rank-1: 1 iterations in .* recording took/);
    expect(readdirSync(out)).toEqual(["rank-1"]); // the run that it was recorded from is gone
  });

  it("tells the same bits as one rank does, each its own pictures by their own numbers", async () => {
    const [alone] = await recordOn(1, () => ({}), record(at("one"), "--steps", "0-1"));
    expect(alone!.code).toBe(0);
    const ends = await recordOn(
      2,
      LAUNCHERS.torchrun!,
      record(at("two"), "--steps", "0-1", "--ranks", "0-1"),
    );
    expect(ends.map(({ code }) => code)).toEqual([0, 0]);
    const one = await readDump(at("one"));
    const numbers: string[] = [];
    for (const rank of [0, 1]) {
      const dump = await readDump(at(`two/rank-${rank}`));
      const comparison = await compareDumps(dump, one);
      // What a rank learns from is a part of the whole; what it makes of that together with the others is not.
      const whole = comparison.findings.filter(({ record: { name } }) => !/^(losses|ratios)$/.test(name));
      expect(whole.filter(({ status }) => status !== "equal").map(({ record: { name } }) => name)).toEqual(
        [],
      );
      expect(comparison.onlyA.filter((key) => !/\|(losses|ratios)\|/.test(key))).toEqual([]);
      numbers.push(
        ...dump.records
          .filter(({ stage, name }) => stage === "it1/decode" && name.startsWith("images."))
          .map(({ name }) => name),
      );
    }
    expect(numbers.length).toBe(16);
    expect(new Set(numbers).size).toBe(16);
  });

  it("tells the weights where no rank has all gradients", async () => {
    const more = ["--ranks", "0", "--set", "distributed.sharding=optimizer"];
    const ends = await recordOn(2, LAUNCHERS.torchrun!, record(at("sharded"), ...more));
    expect(ends.map(({ code }) => code)).toEqual([0, 0]);
    const { findings } = await compareDumps(await readDump(at("sharded/rank-0")), await readDump(at("one")));
    const of = (wanted: string) => findings.filter(({ record: { op, role } }) => `${op} ${role}` === wanted);
    expect(of("parameter gradient")).toEqual([]);
    expect(of("parameter value").length).toBeGreaterThan(100);
    for (const { status, record } of of("parameter value"))
      expect([record.name, status]).toEqual([record.name, "equal"]);
  });

  it("refuses ranks that there are not", async () => {
    const [alone] = await recordOn(1, () => ({}), record(at("none"), "--ranks", "1"));
    expect([alone!.code, alone!.error]).toEqual([2, expect.stringContaining("ranks: expected 0")]);
    expect(existsSync(at("none"))).toBe(false);
  });
});

describe("output.pictureCheck on several ranks", () => {
  const metrics = (run: string) =>
    readFileSync(join(at(run), "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line))
      .filter(({ type }) => type === "iteration")
      .map(({ pictures }) => pictures);
  const train = (size: number, run: string, ...set: string[]) =>
    startTraining(size, config, at(run), { set: ["output.pictureCheck=true", ...set] }).then(allEnded);

  it("looks at the pictures of all ranks, beside the run's first ones after a resume too", async () => {
    expect((await train(1, "look-1"))[0]!.code).toBe(0);
    expect((await train(2, "look-2")).map(({ code }) => code)).toEqual([0, 0]);
    const alone = metrics("look-1");
    expect(alone[0]).toMatchObject({ colourDistance: 0 });
    expect(alone[4].colourDistance).toBeGreaterThan(0);
    expect(metrics("look-2")).toEqual(alone);
    // Stopped after two iterations, and gone on with another number of ranks.
    const { cpSync, rmSync } = await import("node:fs");
    cpSync(at("look-2"), at("look-3"), { recursive: true });
    for (const name of ["done", "final", "report.html", "summary.json"])
      rmSync(join(at("look-3"), name), { recursive: true, force: true });
    const kept = readdirSync(join(at("look-3"), "checkpoints")).sort();
    rmSync(join(at("look-3"), "checkpoints", kept.at(-1)!), { recursive: true });
    expect((await train(1, "look-3"))[0]!.code).toBe(0);
    expect(metrics("look-3")).toEqual(alone);
  });
});
