// The launcher as a real process: whole lines with prefixes, signals, who failed first, restarts, several nodes, exit statuses.
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { main } from "../../lib/commands/main.js";
import { derivedPort } from "../../lib/distributed/environment.js";
import { describeEnd, findCulprit, type LaunchEvent, launch } from "../../lib/distributed/launch.js";
import { Lines } from "../../lib/distributed/lines.js";
import { testFolder } from "../support/device.js";
import {
  cleanEnvironment,
  compiled,
  dist,
  type Ended,
  freePort,
  groupChild,
  start,
} from "../support/processes.js";

compiled();
const folder = testFolder();
const cli = join(dist, "cli.js");

/** A script for ranks. */
function script(name: string, body: string): string {
  const path = join(folder, `${name}.mjs`);
  writeFileSync(path, body);
  return path;
}

const run = (args: string[], env: Record<string, string> = {}) =>
  start(process.execPath, [cli, "launch", ...args], env);
const rankLines = ({ out }: Ended) => out.trim().split("\n").sort();

describe("lines", () => {
  it("are whole, whatever the pieces", () => {
    const text = "one\n\nzw\u00f6lf \u{1f600}\nlast";
    const bytes = Buffer.from(text);
    for (let size = 1; size <= bytes.length; size++) {
      const got: string[] = [];
      const lines = new Lines((line) => got.push(line));
      for (let at = 0; at < bytes.length; at += size) lines.push(bytes.subarray(at, at + size));
      lines.end();
      expect(got).toEqual(text.split("\n"));
    }
  });

  it("that are too long come in pieces, no character cut", () => {
    const got: string[] = [];
    const lines = new Lines((line) => got.push(line));
    const long = `a${"\u00e9".repeat(100_000)}`;
    lines.push(Buffer.from(`${long}\nb`));
    lines.end();
    expect(got.length).toBeGreaterThan(2);
    expect(got.slice(0, -1).join("")).toBe(long);
    expect(got.at(-1)).toBe("b");
  });
});

describe("who failed first", () => {
  const end = (rank: number, more: object) => ({ rank, code: null, signal: null, lastError: "", ...more });
  const outcome = (failures: ReturnType<typeof end>[], more: object = {}) => ({
    failures,
    provoked: false,
    stoppedBy: null,
    failure: null,
    ...more,
  });

  it("is nobody when all is well", () => {
    expect(findCulprit([outcome([]), outcome([])])).toBeUndefined();
  });

  it("is the first to end, unless the rendezvous knows better", () => {
    const failures = [
      end(0, { code: 1, lastError: "rank 1 ..." }),
      end(1, { code: 3, lastError: "no luck" }),
    ];
    expect(findCulprit([outcome(failures)])).toMatchObject({ rank: 0 });
    const failure = { rank: 1, reason: "rank 1: ended by itself" };
    expect(findCulprit([outcome(failures, { failure })])).toEqual({
      rank: 1,
      node: 0,
      reason: "exit code 3: no luck",
    });
    const stopped = [end(0, { code: 1 }), end(1, { signal: "SIGKILL" })];
    const silent = { rank: 1, reason: "rank 1: not heard of" };
    expect(findCulprit([outcome(stopped, { failure: silent })])?.reason).toBe(
      "killed by SIGKILL (rank 1: not heard of)",
    );
  });

  it("is on the node that was not told to stop", () => {
    const all = [
      outcome([end(0, { signal: "SIGTERM" })], { provoked: true }),
      outcome([end(2, { code: 9 })]),
    ];
    expect(findCulprit(all)).toEqual({ rank: 2, node: 1, reason: "exit code 9" });
  });

  it("is told in words", () => {
    expect(describeEnd(end(0, { lastError: "ENOENT" }))).toBe("did not start: ENOENT");
  });
});

describe("a launch", () => {
  it("gives each rank its place, and passes whole lines on", async () => {
    const names = [
      "RANK",
      "LOCAL_RANK",
      "WORLD_SIZE",
      "LOCAL_WORLD_SIZE",
      "MASTER_ADDR",
      "DANCEFLUX_RANK",
      "DANCEFLUX_THREADS",
    ];
    const path = script(
      "place",
      `process.stdout.write("half "); process.stderr.write("to stderr\\n");
       setTimeout(() => console.log(JSON.stringify([${names.map((name) => `process.env.${name}`)}, ...process.argv.slice(2)])), 20);`,
    );
    const { code, out, error } = await run(["--nproc-per-node", "2", "--", path, "--json", "x y"], {
      DANCEFLUX_THREADS: "7",
    }).ended;
    expect(code).toBe(0);
    expect(out.trim().split("\n").sort()).toEqual(
      [0, 1].map((rank) => {
        const values = [rank, rank, 2, 2, "127.0.0.1", rank, 7].map(String);
        return `[rank ${rank}] half ${JSON.stringify([...values, "--json", "x y"])}`;
      }),
    );
    expect(error.trim().split("\n").sort()).toEqual(["[rank 0] to stderr", "[rank 1] to stderr"]);
  });

  it("lets its ranks meet, without anything in the environment", async () => {
    const result = await run(["--nproc-per-node", "3", "--", groupChild, dist, "none"]).ended;
    expect(result).toMatchObject({ code: 0, error: "" });
    expect(rankLines(result).filter((line) => line.includes("values"))).toHaveLength(9);
  });

  const FAILED: [string, string, RegExp][] = [
    ["kill", "1", /danceflux: launch: rank 1 failed first: killed by SIGKILL/],
    ["exit", "2", /danceflux: launch: rank 2 failed first: exit code 7/],
    ["throw", "0", /danceflux: launch: rank 0 failed first: exit code 1: Error: no luck\n/],
  ];
  it.each(FAILED)("ends all ranks when one fails, and says which: %s", async (action, culprit, message) => {
    const result = await run([
      "--nproc-per-node",
      "3",
      "--grace",
      "5",
      "--",
      groupChild,
      dist,
      action,
      culprit,
    ]).ended;
    expect(result.code).toBe(1);
    expect(result.error).toMatch(message);
    // The others knew by themselves.
    expect(result.out.match(/"error":"[^}]*rank \d: /g)).toHaveLength(2);
  });

  it("notices a rank that is stopped, and ends it", async () => {
    const result = await run([
      "--nproc-per-node",
      "2",
      "--silence",
      "1",
      "--grace",
      "0.5",
      "--",
      groupChild,
      dist,
      "stop",
      "1",
    ]).ended;
    expect(result.code).toBe(1);
    expect(result.error).toMatch(
      /rank 1 failed first: killed by SIGKILL \(rank 1: lost .*: not heard of for 1 s/,
    );
  });

  it("asks ranks that know nothing to end, and then makes them", async () => {
    const path = script(
      "deaf",
      `process.on("SIGTERM", () => console.log("no"));
       setInterval(() => {}, 1000);
       if (process.env.RANK === "1") setTimeout(() => process.exit(5), 100);`,
    );
    const result = await run(["--nproc-per-node", "2", "--grace", "0.3", "--", path]).ended;
    expect(result).toMatchObject({ code: 1, out: "[rank 0] no\n" });
    expect(result.error).toContain("rank 1 failed first: exit code 5");
  });

  it("starts all again, as often as it is told", async () => {
    const path = script(
      "again",
      `import { initGroup } from ${JSON.stringify(join(dist, "index.js"))};
       const group = await initGroup();
       const attempt = Number(process.env.DANCEFLUX_RESTART);
       const all = await group.exchange("attempt", attempt);
       console.log("attempt " + all.join());
       if (attempt < Number(process.argv[2]) && group.rank === 1) throw new Error("not yet");
       await group.close();`,
    );
    const good = await run(["--nproc-per-node", "2", "--max-restarts", "2", "--json", "--", path, "2"]).ended;
    expect(good.code).toBe(0);
    expect(good.lines.filter(({ type }) => type !== "output").map(({ type }) => type)).toEqual([
      "start",
      "failed",
      "restart",
      "start",
      "failed",
      "restart",
      "start",
      "summary",
    ]);
    expect(good.lines.at(-1)).toEqual({ type: "summary", ranks: 2, restarts: 2, stoppedBy: null });
    expect(good.lines.filter(({ line }) => line === "attempt 2,2")).toHaveLength(2);
    expect(good.error).toContain("danceflux: starting all ranks again, 1 of 2");
    const bad = await run(["--nproc-per-node", "2", "--max-restarts", "1", "--", path, "5"]).ended;
    expect(bad.code).toBe(1);
    expect(bad.error).toContain("launch: rank 1 failed first after 1 restart: exit code 1: Error: not yet");
  });

  it.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
    "passes %s on, once, and ends well when the ranks do",
    async (signal) => {
      const path = script(
        `polite-${signal}`,
        `let heard = 0;
       process.on(${JSON.stringify(signal)}, () => { heard++; setTimeout(() => { console.log("heard " + heard); process.exit(0); }, 150); });
       console.log("ready"); setInterval(() => {}, 1000);`,
      );
      const launched = run(["--nproc-per-node", "2", "--max-restarts", "3", "--", path]);
      await launched.said("[rank 0] ready");
      await launched.said("[rank 1] ready");
      launched.child.kill(signal);
      const result = await launched.ended;
      expect(result.code).toBe(0);
      expect(rankLines(result)).toEqual([
        "[rank 0] heard 1",
        "[rank 0] ready",
        "[rank 1] heard 1",
        "[rank 1] ready",
      ]);
    },
  );

  it("does not start again what a signal ended; the third signal is final", async () => {
    const path = script(
      "stubborn",
      `process.on("SIGINT", () => console.log("no " + process.env.RANK)); console.log("ready"); setInterval(() => {}, 1000);`,
    );
    const launched = run(["--nproc-per-node", "2", "--max-restarts", "3", "--", path]);
    for (const rank of [0, 1]) await launched.said(`[rank ${rank}] ready`);
    for (let times = 1; times <= 3; times++) {
      launched.child.kill("SIGINT");
      if (times < 3) await launched.said("no 0", times);
    }
    const result = await launched.ended;
    expect(result.code).toBe(1);
    expect(result.error).toMatch(/launch: stopped by SIGINT; rank \d: killed by SIGKILL/);
  });

  it("refuses what it cannot start", async () => {
    const cases: [string[], string][] = [
      [["--nproc-per-node", "0", "--", "x"], "--nproc-per-node: expected a whole number of 1 or more"],
      [["--nproc-per-node", "1", "--", "trian"], "expected a danceflux command or a script, got trian"],
      [["--nproc-per-node", "1"], "missing required argument 'what'"],
      [["--", "x"], "required option '--nproc-per-node <n>' not specified"],
      [
        ["--nproc-per-node", "1", "--nnodes", "2", "--", "doctor"],
        "nodeRank: expected a number from 0 to 1, got none",
      ],
      [
        ["--nproc-per-node", "1", "--nnodes", "2", "--node-rank", "1", "--", "doctor"],
        "endpoint: expected HOST:PORT of node 0",
      ],
      [
        ["--nproc-per-node", "1", "--rdzv-endpoint", "x", "--", "doctor"],
        'endpoint: expected HOST:PORT, got "x"',
      ],
    ];
    for (const [args, message] of cases) {
      let told = "";
      const stream = {
        write: (text: string) => {
          told += text;
        },
      };
      expect(await main(["launch", ...args], { stdout: stream, stderr: stream })).toBe(2);
      expect(told).toContain(message);
    }
  });

  it("runs danceflux commands", async () => {
    const result = await run(["--nproc-per-node", "2", "--", "train", join(folder, "none.json")]).ended;
    expect(result.code).toBe(1);
    expect(result.error).toMatch(/\[rank 1\] danceflux: .*none\.json: cannot be read/);
    expect(result.error).toMatch(/launch: rank \d failed first: exit code 1: danceflux: .*none\.json/);
  });
});

describe("launchers of two nodes", () => {
  const nodes = async (perNode: number[], args: string[], more: string[] = []) => {
    const endpoint = `127.0.0.1:${await freePort()}`;
    return perNode.map((nproc, node) =>
      run(
        [
          "--nproc-per-node",
          String(nproc),
          "--nnodes",
          "2",
          "--node-rank",
          String(node),
          "--rdzv-endpoint",
          endpoint,
          ...more,
          "--",
          ...args,
        ],
        { DANCEFLUX_SECRET: "s3cret" },
      ),
    );
  };

  it("number their ranks one after the other", async () => {
    const [first, second] = await Promise.all(
      (await nodes([1, 2], [groupChild, dist, "none"])).map(({ ended }) => ended),
    );
    expect([first!.code, second!.code]).toEqual([0, 0]);
    expect(first!.out).toContain('[rank 0] {"rank":0,"size":3,"localRank":0,"localSize":1}');
    expect(second!.out).toContain('[rank 2] {"rank":2,"size":3,"localRank":1,"localSize":2}');
  });

  it("end together when a rank of one fails, and start again together", async () => {
    const both = await Promise.all(
      (await nodes([1, 1], [groupChild, dist, "exit", "1"], ["--max-restarts", "1", "--grace", "5"])).map(
        ({ ended }) => ended,
      ),
    );
    for (const { code, error } of both) {
      expect(code).toBe(1);
      expect(error).toContain("danceflux: starting all ranks again, 1 of 1");
      expect(error).toContain("launch: rank 1 (node 1) failed first after 1 restart: exit code 7");
    }
  });

  it("learn that a launcher is killed", async () => {
    const started = await nodes([1, 1], [groupChild, dist, "hold", "0"], ["--grace", "1"]);
    await started[1]!.said('"round":1');
    started[1]!.child.kill("SIGKILL");
    const { code, error } = await started[0]!.ended;
    expect(code).toBe(1);
    expect(error).toMatch(/exchange "end of attempt 0": node 1: lost .*: its connection closed|node 1: lost/);
  });

  it("pass a signal of one on to all", async () => {
    const path = script(
      "both",
      `process.on("SIGTERM", () => process.exit(0)); console.log("ready"); setInterval(() => {}, 1000);`,
    );
    const started = await nodes([1, 1], [path]);
    await Promise.all(started.map(({ said }, node) => said(`[rank ${node}] ready`)));
    started[1]!.child.kill("SIGTERM");
    for (const { ended } of started) expect((await ended).code).toBe(0);
  });
});

describe("launch() from a script", () => {
  it("resolves with what happened, and tells it meanwhile", async () => {
    const path = script("quick", `console.log("from " + process.env.RANK);`);
    const heard: string[] = [];
    const events: LaunchEvent["type"][] = [];
    const result = await launch({
      nprocPerNode: 2,
      script: path,
      onLine: (rank, stream, line) => heard.push(`${rank} ${stream} ${line}`),
      onEvent: ({ type }) => events.push(type),
    });
    expect(result).toEqual({ ranks: 2, restarts: 0, stoppedBy: null });
    expect(heard.sort()).toEqual(["0 stdout from 0", "1 stdout from 1"]);
    expect(events).toEqual(["start"]);
  });

  it("waits for a stream that is full", async () => {
    const path = script("much", `for (let i = 0; i < 2000; i++) console.log("x".repeat(100) + i);`);
    let [lines, full] = [0, 0];
    const stdout = {
      write: () => ++lines % 100 !== 0,
      once: (_: "drain", resume: () => void) => {
        full++;
        setTimeout(resume, 1);
      },
    };
    await launch({ nprocPerNode: 2, script: path, stdout });
    expect(lines).toBe(4000);
    expect(full).toBeGreaterThan(0);
  });

  it("rejects when a rank fails, and stops when it is told to", async () => {
    const fails = script("fails", "throw new Error('bad');");
    const stderr = { write: () => true };
    await expect(launch({ nprocPerNode: 1, script: fails, stderr })).rejects.toMatchObject({
      code: "ERR_RANK",
      message: "launch: rank 0 failed first: exit code 1: Error: bad",
    });
    const controller = new AbortController();
    const waits = script("waits", "console.log('ready'); setInterval(() => {}, 1000);");
    const running = launch({
      nprocPerNode: 1,
      script: waits,
      signal: controller.signal,
      onLine: () => controller.abort(),
    });
    await expect(running).rejects.toMatchObject({
      code: "ERR_ABORTED",
      message: expect.stringContaining("stopped by SIGTERM"),
    });
    await expect(launch({ nprocPerNode: 1 })).rejects.toThrow("expected either a script or a command");
  });
});

const mpirun = spawnSync("mpirun", ["--version"]).status === 0;

describe("mpirun", () => {
  it.skipIf(!mpirun)("starts ranks that find each other", async () => {
    const args = [
      "--allow-run-as-root",
      "--oversubscribe",
      "-n",
      "2",
      process.execPath,
      groupChild,
      dist,
      "none",
    ];
    const { code, lines, error } = await start("mpirun", args, cleanEnvironment()).ended;
    expect({ code, error }).toEqual({ code: 0, error: "" });
    const places = lines
      .filter(({ size }) => size === 2)
      .map(({ rank, localRank, localSize }) => [rank, localRank, localSize]);
    expect(places.sort()).toEqual([
      [0, 0, 2],
      [1, 1, 2],
    ]);
    expect(derivedPort("mpi 1")).not.toBe(derivedPort("mpi 2"));
  });
});
