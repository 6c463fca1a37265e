// Trainings of tiny-shapes as processes of their own, for benches that compare whole iterations: each is a `danceflux train` per rank.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const cli = fileURLToPath(new URL("../dist/cli.js", import.meta.url));

export const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

async function freePort() {
  const server = createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

function startRank(rank, size, port, args, variables) {
  const env = { ...process.env, MASTER_ADDR: "127.0.0.1", MASTER_PORT: String(port), ...variables };
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

/**
 * Trains on `size` ranks and answers the metrics of the iterations. `config` is written to a folder that is gone afterwards; `look` may read
 * its file before, and what it says is `looked` of the answer.
 */
export async function trainRanks(size, config, { variables = {}, look = () => undefined } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "danceflux-bench-"));
  try {
    const path = join(folder, "train.json");
    writeFileSync(
      path,
      JSON.stringify({ ...config, output: { checkpointEvery: 0, ...config.output, folder: "run" } }),
    );
    const looked = look(path);
    const port = await freePort();
    const outs = await Promise.all(
      Array.from({ length: size }, (_, rank) => startRank(rank, size, port, [path, "--json"], variables)),
    );
    const lines = outs[0]
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    return Object.assign(
      lines.filter(({ type }) => type === "iteration"),
      { looked },
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Seconds of a stage ("total": of the iteration), the first iteration left out: it takes its memory from the system. */
export const stagePace = (stage) => (iterations) =>
  median(iterations.slice(1).map(({ seconds }) => seconds[stage]));
