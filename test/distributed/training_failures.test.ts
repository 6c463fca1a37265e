// What can happen to a training of several ranks: it is stopped, killed, resumed on another number of ranks, told nonsense, left without
// rewards.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { decodePng } from "../../lib/image/index.js";
import { testFolder } from "../support/device.js";
import { json, testScorer } from "../support/http.js";
import { childrenOf, compiled, dist, environmentOf, start } from "../support/processes.js";
import {
  allEnded,
  checkpointsOf,
  metricsOf,
  picturesOf,
  redness,
  startTraining,
  trainRanks,
  weightsOf,
  writeTinyConfig,
} from "../support/training_ranks.js";

compiled();
const folder = testFolder();
const runOf = (name: string) => join(folder, name);
let config: string;
const SHARDED = { set: ["distributed.sharding=optimizer"] };

beforeAll(async () => {
  config = writeTinyConfig(folder);
  await trainRanks(1, config, runOf("whole"));
}, 180_000);

function expectWhole(run: string): void {
  expect(picturesOf(run)).toEqual(picturesOf(runOf("whole")));
  expect(metricsOf(run)).toEqual(metricsOf(runOf("whole")));
  expect(weightsOf(run)).toEqual(weightsOf(runOf("whole")));
}

/** Every checkpoint has the files that it names. */
function expectWholeCheckpoints(run: string, where?: string): void {
  for (const name of checkpointsOf(run).filter((entry) => /^\d+$/.test(entry))) {
    const state = readFileSync(join(run, "checkpoints", name, "trainer.json"), "utf8");
    for (const file of JSON.parse(state).optimizer)
      expect(existsSync(join(run, "checkpoints", name, file)), where).toBe(true);
  }
}

/** Runs until the first rank has told of an iteration, then does something; waits for all to end. */
async function interrupted(
  size: number,
  run: string,
  iteration: number,
  act: (started: Awaited<ReturnType<typeof startTraining>>) => void | Promise<void>,
) {
  const started = await startTraining(size, config, run, SHARDED);
  await started[0]!.said(`"type":"iteration","iteration":${iteration},`);
  await act(started);
  return allEnded(started);
}

describe("a training of several ranks", () => {
  it("stops on all when one is asked to, and goes on with any number of ranks", async () => {
    const run = runOf("stopped");
    const first = await interrupted(2, run, 1, (ranks) => void ranks[1]!.child.kill("SIGINT"));
    expect(first.map(({ code }) => code)).toEqual([0, 0]);
    const done = (first[0]!.lines.at(-1) as { iterations: number }).iterations;
    expect(first[0]!.lines.at(-1)).toMatchObject({ type: "summary", finished: false });
    expect(done).toBeGreaterThan(0);
    expect(done).toBeLessThan(5);
    expect(checkpointsOf(run).at(-1)).toBe(String(done).padStart(6, "0"));
    expect(existsSync(join(run, "final"))).toBe(false);
    if (done < 4) {
      const second = await interrupted(4, run, done + 1, (ranks) => void ranks[0]!.child.kill("SIGTERM"));
      expect(second.map(({ code }) => code)).toEqual([0, 0, 0, 0]);
    }
    await trainRanks(1, config, run);
    expectWhole(run);
  }, 180_000);

  it("ends on all when one is killed, keeps its last checkpoint, and goes on", async () => {
    const run = runOf("killed");
    const patience = Math.random() * 300;
    const ended = await interrupted(2, run, 2, async ([_, second]) => {
      await new Promise((done) => setTimeout(done, patience));
      second!.child.kill("SIGKILL");
    });
    const where = `killed ${patience} ms after iteration 2`;
    if (ended[1]!.signal === "SIGKILL" && ended[0]!.code !== 0) {
      expect(ended[0]!.error, where).toContain("rank 1");
      expect(ended[0]!.code, where).toBe(1);
    }
    expectWholeCheckpoints(run, where);
    await trainRanks(2, config, run, SHARDED);
    expectWhole(run);
  }, 180_000);

  it("tells on all ranks what went wrong on one", async () => {
    const started = await startTraining(2, config, runOf("broken"), {
      set: (rank) => (rank === 1 ? [`embeddingCache=${config}/cache`] : []),
    });
    const [first, second] = await allEnded(started);
    expect([first!.code, second!.code]).toEqual([1, 1]);
    expect(second!.error).toContain("train.json/cache");
    expect(first!.error).toContain("rank 1");
    expect(first!.error).toContain("train.json/cache");
  }, 180_000);

  // Deadlines leave a slow machine time for what is not late: twice for an answer, and for the other rank to start.
  const LATE: [string, number, number, RegExp, RegExp][] = [
    [
      "its own deadline",
      3,
      600,
      /rank 1: ended by itself .*: red: it failed: .*: no answer within 3 s/,
      /red: it failed: http:\/\/127\.0\.0\.1:\d+: no answer within 3 s \(2 attempts\)/,
    ],
    [
      "that of the ranks",
      600,
      20,
      /exchange "iteration 3: rewards": expected all ranks within 20 s, got nothing of rank 1/,
      /exchange "iteration 3: rewards": expected all ranks within 20 s, got nothing of rank 1/,
    ],
  ];
  it.each(LATE)(
    "ends on all when a rank waits for its reward beyond %s",
    async (name, timeoutSeconds, ranksSeconds, first, second) => {
      let hangs = true;
      const { url } = await testScorer(async ({ headers, body }, response) => {
        if (hangs && headers["x-rank"] === "1" && body.iteration === 2) return; // never answered
        const pictures = body.images.map((image) => decodePng(Buffer.from(image, "base64"), "png"));
        json(response, { scores: (await Promise.all(pictures)).map(redness) });
      });
      const reward = {
        type: "http",
        name: "red",
        path: url,
        timeoutSeconds,
        retries: 1,
        backoffSeconds: 0.1,
      };
      const scored = writeTinyConfig(runOf(`scored ${timeoutSeconds}`), {
        rewards: [{ ...reward, headersFromEnvironment: { "x-rank": "RANK" } }],
      });
      const run = runOf(`late by ${name}`);
      const env = { DANCEFLUX_TIMEOUT_SECONDS: String(ranksSeconds) };
      const ended = await allEnded(await startTraining(2, scored, run, { ...SHARDED, env }));
      expect(ended.map(({ code }) => code)).toEqual([1, 1]);
      expect(ended[0]!.error).toMatch(first);
      expect(ended[1]!.error).toMatch(second);
      expect(checkpointsOf(run)).toEqual(["000001", "000002"]);
      expectWholeCheckpoints(run);
      hangs = false;
      await trainRanks(2, scored, run, SHARDED);
      expect(weightsOf(run)).toEqual(weightsOf(runOf("whole")));
    },
    180_000,
  );

  it("tells in the next line how long a checkpoint took", () => {
    const lines = readFileSync(join(runOf("whole"), "metrics.jsonl"), "utf8")
      .trim()
      .split("\n");
    const iterations = lines.map((line) => JSON.parse(line)).filter(({ type }) => type === "iteration");
    for (const { iteration, seconds } of iterations) {
      // The optimizer's state is written and synchronised: more than a few files of pictures wait for.
      if (iteration > 1) expect(seconds.save).toBeGreaterThan(0.002);
      expect(seconds.total).toBeGreaterThan(seconds.save);
    }
  });

  it("ends on all when a rank's own reward never answers, heeds nothing and holds on", async () => {
    const scored = writeTinyConfig(runOf("deaf"), { rewards: [{ type: "module", path: "deaf.mjs" }] });
    writeFileSync(
      join(runOf("deaf"), "deaf.mjs"),
      `const redness = ${redness};
      export default (pictures, prompts, { iteration }) => {
        if (process.env.RANK !== "1" || iteration !== 2) return pictures.map(redness);
        setInterval(() => {}, 1000);
        return new Promise(() => {});
      };`,
    );
    const run = runOf("late by deafness");
    const env = { DANCEFLUX_TIMEOUT_SECONDS: "20" };
    const ended = await allEnded(await startTraining(2, scored, run, { ...SHARDED, env }));
    expect(ended.map(({ code }) => code)).toEqual([1, 1]);
    for (const { error } of ended)
      expect(error).toMatch(/exchange "iteration 3: rewards": .* got nothing of rank 1/);
    expectWholeCheckpoints(run);
  }, 180_000);

  it("wants the same options on all", async () => {
    const started = await startTraining(2, config, runOf("differing"), { set: (rank) => [`seed=${rank}`] });
    for (const { error, code } of await allEnded(started)) {
      expect(error).toContain("expected the same on all ranks, got seed: 0 on rank 0, 1 on rank 1");
      expect(error).not.toContain("loading"); // told before any weight is read
      expect(code).not.toBe(0);
    }
  }, 180_000);

  it("goes on from its last checkpoint when its launcher starts it again", async () => {
    const run = runOf("again");
    const launch = ["launch", "--nproc-per-node", "2", "--max-restarts", "1", "--grace", "5", "--json", "--"];
    const training = ["train", config, "--json", "--set", `output.folder=${run}`, "--set", SHARDED.set[0]!];
    const launcher = start(process.execPath, [join(dist, "cli.js"), ...launch, ...training]);
    await launcher.said('\\"type\\":\\"iteration\\",\\"iteration\\":2,');
    const second = childrenOf(launcher.child.pid!).find((pid) => environmentOf(pid).RANK === "1");
    process.kill(second!, "SIGKILL");
    const { code, lines, error } = await launcher.ended;
    expect([code, error]).toEqual([0, expect.stringContaining("rank 1 failed first: killed by SIGKILL")]);
    expect(lines.at(-1)).toMatchObject({ type: "summary", ranks: 2, restarts: 1 });
    expectWhole(run);
  }, 180_000);

  it("wants numbers that the ranks divide", async () => {
    const set = ["distributed.groupSpansRanks=false", "distributed.collective=fast"];
    const [first] = await allEnded(await startTraining(3, config, runOf("uneven"), { set }));
    expect(first!.code).toBe(2);
    expect(first!.error).toContain("config: promptsPerIteration: expected a multiple of the 3 ranks, got 4");
  }, 180_000);
});
