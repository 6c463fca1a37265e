// Training of tiny-shapes on one rank and on two, one thread each: the same pictures per rank (weak scaling), what of the communication
// is hidden behind backward, and what a rank holds with each sharding. Each training is a `danceflux train` of its own.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const cli = fileURLToPath(new URL("../dist/cli.js", import.meta.url));
// The first iteration takes its memory from the system, and is not counted.
const ITERATIONS = 6;
const PROMPTS = 4; // of a rank
const GROUP = 12;

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

async function freePort() {
  const server = createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

function startRank(rank, size, port, args) {
  const env = { ...process.env, DANCEFLUX_THREADS: "1", MASTER_ADDR: "127.0.0.1", MASTER_PORT: String(port) };
  if (size > 1) Object.assign(env, { RANK: String(rank), WORLD_SIZE: String(size) });
  const child = spawn(process.execPath, [cli, "train", ...args], {
    env,
    stdio: ["ignore", "pipe", "inherit"],
  });
  let out = "";
  child.stdout.setEncoding("utf8").on("data", (text) => {
    out += text;
  });
  return new Promise((done, fail) => {
    child.once("error", fail);
    child.once("close", (code) =>
      code === 0 ? done(out) : fail(new Error(`rank ${rank} of ${size} ended with ${code}`)),
    );
  });
}

/** Metrics of the iterations of one training; `distributed` are its options. */
async function train(size, { prompts = PROMPTS * size, iterations = ITERATIONS, distributed = {} } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "danceflux-bench-"));
  try {
    const config = join(folder, "train.json");
    const pictures = prompts * GROUP;
    writeFileSync(
      config,
      JSON.stringify({
        preset: "tiny-shapes",
        promptsPerIteration: prompts,
        iterations,
        sampling: { batch: 48 },
        learning: { accumulate: pictures, microbatch: 48 },
        evaluation: { every: 0 },
        output: { folder: "run", checkpointEvery: 0 },
        // The model has 9 MB of gradients: pieces of 1 MiB are to it what those of 25 MiB are to a large one.
        distributed: { bucketMiB: 1, ...distributed },
      }),
    );
    const port = await freePort();
    const outs = await Promise.all(
      Array.from({ length: size }, (_, rank) => startRank(rank, size, port, [config, "--json"])),
    );
    const lines = outs[0]
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    return lines.filter(({ type }) => type === "iteration");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Seconds of an iteration, the first left out. */
const pace = (iterations) => median(iterations.slice(1).map(({ seconds }) => seconds.total));
const waited = (iterations) =>
  iterations.slice(1).reduce((sum, { distributed }) => sum + distributed.secondsWaited, 0) /
  (iterations.length - 1);

/** Two ranks with the pictures of one must learn the same, or nothing here means anything. */
async function sameResults() {
  const options = { prompts: 2, iterations: 2, distributed: { collective: "ordered" } };
  const [alone, both] = [await train(1, options), await train(2, options)];
  return alone.every(
    ({ reward, gradientNorm }, i) =>
      reward.mean === both[i].reward.mean && gradientNorm === both[i].gradientNorm,
  );
}

export async function run({ report, repeat }) {
  const checked = await sameResults();
  const paces = { alone: [], both: [], after: [] };
  const waits = { overlapped: [], after: [] };
  for (let i = 0; i < repeat; i++) {
    // In turn, so that what else the machine does falls on both.
    paces.alone.push(pace(await train(1)));
    const both = await train(2);
    paces.both.push(pace(both));
    waits.overlapped.push(waited(both));
    const after = await train(2, { distributed: { overlap: false } });
    paces.after.push(pace(after));
    waits.after.push(waited(after));
  }
  const [alone, both] = [median(paces.alone), median(paces.both)];
  const note = `efficiency ${(alone / both).toFixed(3)}`;
  report({ name: "iteration, 48 pictures a rank", ours: both, theirs: alone, unit: "s", checked, note });
  const [hidden, open] = [median(waits.overlapped), median(waits.after)];
  const share = open > 0 ? `${(100 * (1 - hidden / open)).toFixed(0)} % hidden` : "nothing to wait for";
  report({ name: "waited for gradients", ours: hidden, theirs: open, unit: "s", checked, note: share });
  for (const sharding of ["none", "optimizer", "optimizer+gradients"]) {
    const last = (await train(2, { iterations: 2, distributed: { sharding } })).at(-1);
    const mib = (bytes) => bytes / 2 ** 20;
    const name = `${sharding}: optimizer state`;
    report({ name, ours: mib(last.memory.optimizer), unit: "MiB", checked });
    report({ name: `${sharding}: gradients`, ours: mib(last.memory.gradients), unit: "MiB", checked });
    report({ name: `${sharding}: peak of the device`, ours: mib(last.memory.peak), unit: "MiB", checked });
  }
  return checked;
}
