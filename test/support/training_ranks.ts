// Trainings of the shipped tiny model on several ranks, small enough to take a second: real processes, the real command line.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { PartialConfig } from "../../lib/grpo/config.js";
import { dist, type Ended, freePort, type Started, start } from "./processes.js";

const root = new URL("../..", import.meta.url).pathname;

/** Likes red, and different pictures differently. */
export const redness = ({ data }: { data: Uint8Array }): number =>
  data.reduce((sum, byte, i) => sum + byte * (i % 3 === 0 ? 1 : -0.5), 0) / data.length;

const RED = `export default async (pictures) => pictures.map(${redness});
`;

/** 16 pictures an iteration, two updates; no number of pictures is a multiple of the rollout's batch. */
const TINY: PartialConfig = {
  model: { path: join(root, "models/tiny-shapes"), dtype: "f32" },
  prompts: ["a red circle", "a blue square", "a green triangle", "two yellow circles", "a red square"],
  promptsPerIteration: 4,
  groupSize: 4,
  iterations: 5,
  seed: 7,
  sampling: { width: 32, height: 32, steps: 4, batch: 3, eta: 0.9 },
  learning: {
    learningRate: 1e-3,
    accumulate: 8,
    microbatch: 2,
    clipRange: 0.1,
    clipNorm: 0.5,
    timestepFraction: 0.7,
    emaDecay: 0.9,
  },
  rewards: [{ type: "module", path: "red.mjs" }],
  evaluation: {
    every: 5,
    prompts: ["a red circle", "a blue circle", "a white square"],
    steps: 2,
    batch: 2,
  },
  output: { checkpointEvery: 1, keep: 2, picturesEvery: 1 },
  distributed: { collective: "ordered", groupSpansRanks: true, bucketMiB: 0.25 },
};

/** Writes the configuration; answers its path. */
export function writeTinyConfig(folder: string, over: PartialConfig = {}): string {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "red.mjs"), RED);
  const path = join(folder, "train.json");
  writeFileSync(path, JSON.stringify({ ...TINY, ...over }));
  return path;
}

export interface RankOptions {
  /** `name=value` for all ranks, or for each. */
  set?: string[] | ((rank: number) => string[]);
  /** More variables of their environment. */
  env?: Record<string, string>;
}

/** Starts `danceflux train` on every rank, one thread each. */
export async function startTraining(
  size: number,
  config: string,
  run: string,
  { set = [], env = {} }: RankOptions = {},
): Promise<Started[]> {
  const MASTER_PORT = String(await freePort());
  return Array.from({ length: size }, (_, rank) => {
    const changes = [`output.folder=${run}`, ...(typeof set === "function" ? set(rank) : set)];
    const args = [join(dist, "cli.js"), "train", config, "--json"];
    return start(process.execPath, [...args, ...changes.flatMap((change) => ["--set", change])], {
      ...(size > 1 ? { RANK: String(rank), WORLD_SIZE: String(size) } : {}),
      MASTER_ADDR: "127.0.0.1",
      MASTER_PORT,
      DANCEFLUX_THREADS: "1",
      ...env,
    });
  });
}

export const allEnded = (started: Started[]): Promise<Ended[]> =>
  Promise.all(started.map(({ ended }) => ended));

/** Trains to the end; throws what a rank said when it failed. */
export async function trainRanks(
  size: number,
  config: string,
  run: string,
  options: RankOptions = {},
): Promise<Ended[]> {
  const ended = await allEnded(await startTraining(size, config, run, options));
  const failed = ended.findIndex(({ code }) => code !== 0);
  if (failed >= 0) throw new Error(`rank ${failed} of ${size}: ${ended[failed]!.error}`);
  return ended;
}

const hash = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");

/** Every file below a folder that matches, with its hash. */
export function hashes(folder: string, pattern: RegExp): Record<string, string> {
  const names = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => pattern.test(name))
    .sort();
  return Object.fromEntries(names.map((name) => [name, hash(join(folder, name))]));
}

export const picturesOf = (run: string) => hashes(run, /\.png$|pictures\.json$/);
export const weightsOf = (run: string) => hashes(join(run, "final"), /\.safetensors$/);

/** The metrics without what depends on time and place. */
export function metricsOf(run: string): Record<string, unknown>[] {
  const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trim().split("\n");
  return lines.map((line) => {
    const { seconds, imagesPerSecond, modelFlops, memory, distributed, ...rest } = JSON.parse(line);
    return rest;
  });
}

export const checkpointsOf = (run: string): string[] => readdirSync(join(run, "checkpoints")).sort();
