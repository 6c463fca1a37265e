/**
 * Checkpoints: everything that iteration n + 1 depends on. A folder `checkpoints/<iteration>` appears whole or not at all, so a kill at any
 * moment leaves the last good one. Ranks that keep state for themselves write a file each; any number of ranks reads them.
 */
import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { type NativeOptimizer, runJob } from "../native.js";
import { Team } from "./team.js";

/** What a checkpoint knows besides weights and optimizer. */
export interface TrainerState {
  version: 1;
  /** Iterations done. */
  iteration: number;
  /** Optimizer updates done, skipped ones included. */
  updates: number;
  skippedUpdates: number;
  /** Where the prompt order stands. */
  prompts: { epoch: number; index: number };
  /** Length of metrics.jsonl in bytes. */
  metricsBytes: number;
  /** Files of the optimizer's state; absent: one. */
  optimizer?: string[];
  /** Of all options that change what is computed: a resumed run must have the same. */
  configHash: string;
  seconds: number;
}

const OPTIMIZER = "optimizer.safetensors";
const STATE = "trainer.json";
const nameOf = (iteration: number) => String(iteration).padStart(6, "0");

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

async function writeSynced(path: string, text: string): Promise<void> {
  const file = await open(path, "w");
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Finished checkpoints of a run, oldest first. */
export async function listCheckpoints(runFolder: string): Promise<{ iteration: number; path: string }[]> {
  const folder = join(runFolder, "checkpoints");
  const names = await readdir(folder).catch(() => [] as string[]);
  return names
    .filter((name) => /^\d{6,}$/.test(name))
    .map((name) => ({ iteration: Number(name), path: join(folder, name) }))
    .sort((a, b) => a.iteration - b.iteration);
}

/** How the optimizer's state is written. */
export interface CheckpointOptions {
  keep: number;
  team?: Team;
  /** Every rank has a share of the state; otherwise the first has all of it. */
  sharded?: boolean;
}

const shardNames = (ranks: number) =>
  Array.from(
    { length: ranks },
    (_, rank) =>
      `optimizer-${String(rank + 1).padStart(5, "0")}-of-${String(ranks).padStart(5, "0")}.safetensors`,
  );

/**
 * Saves the state after an iteration and removes checkpoints beyond the last `keep`. All ranks call it; the checkpoint appears when all of it
 * is written.
 *
 * @throws {DanceError} `ERR_CHECKPOINT` when it cannot be written; earlier checkpoints are untouched then.
 */
export async function saveCheckpoint(
  runFolder: string,
  state: TrainerState,
  optimizer: NativeOptimizer,
  { keep, team = new Team(), sharded = false }: CheckpointOptions,
): Promise<string> {
  const folder = join(runFolder, "checkpoints");
  const final = join(folder, nameOf(state.iteration));
  const names = sharded && team.size > 1 ? shardNames(team.size) : [OPTIMIZER];
  let temporary = `${final}.tmp-${process.pid}`;
  try {
    if (team.isFirst) await prepareFolder(folder, temporary);
    [temporary] = (await team.gather("checkpoint", temporary)) as [string];
    const own = names[team.rank];
    if (own) await runJob(optimizer.save(join(temporary, own)), team.signal());
    await team.meet("checkpoint written");
    if (team.isFirst) {
      const whole = { ...state, ...(names.length > 1 ? { optimizer: names } : {}) };
      await writeSynced(join(temporary, STATE), `${JSON.stringify(whole, null, 2)}\n`);
      await syncFolder(temporary);
      await rm(final, { recursive: true, force: true });
      await rename(temporary, final);
      await syncFolder(folder);
    }
  } catch (cause) {
    if (team.isFirst) await rm(temporary, { recursive: true, force: true }).catch(() => {});
    throw new DanceError(
      "ERR_CHECKPOINT",
      `${final}: the checkpoint cannot be written (${(cause as Error).message})`,
      { cause },
    );
  }
  if (team.isFirst) await removeOld(runFolder, keep);
  return final;
}

async function prepareFolder(folder: string, temporary: string): Promise<void> {
  await removeLeftovers(folder);
  await mkdir(temporary, { recursive: true });
}

async function removeOld(runFolder: string, keep: number): Promise<void> {
  const all = await listCheckpoints(runFolder);
  for (const old of all.slice(0, Math.max(0, all.length - keep)))
    await rm(old.path, { recursive: true, force: true });
}

// What a killed run left behind.
async function removeLeftovers(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => [] as string[]);
  for (const name of names.filter((entry) => /\.tmp-\d+$/.test(entry))) {
    await rm(join(folder, name), { recursive: true, force: true });
  }
}

/** The newest checkpoint of a run, if there is one. */
export async function latestCheckpoint(
  runFolder: string,
): Promise<{ path: string; state: TrainerState } | undefined> {
  const newest = (await listCheckpoints(runFolder)).at(-1);
  return newest && readCheckpoint(newest.path);
}

// Plain names: what a state names is read from its own folder.
const isFileList = (value: unknown): boolean =>
  Array.isArray(value) &&
  value.length > 0 &&
  value.every((name) => typeof name === "string" && /^\w[\w.-]*$/.test(name));

/** @throws {DanceError} `ERR_CHECKPOINT` when there is none that can be read. */
export async function readCheckpoint(folder: string): Promise<{ path: string; state: TrainerState }> {
  const path = join(folder, STATE);
  try {
    const state = JSON.parse(await readFile(path, "utf8")) as TrainerState;
    if (state.version !== 1 || !Number.isInteger(state.iteration))
      throw new Error("not a trainer state of version 1");
    if (state.optimizer !== undefined && !isFileList(state.optimizer))
      throw new Error("optimizer: expected a list of file names");
    return { path: folder, state };
  } catch (cause) {
    throw new DanceError("ERR_CHECKPOINT", `${path}: cannot be read (${(cause as Error).message})`, {
      cause,
    });
  }
}

/** Reads what however many ranks wrote; all ranks call it. */
export async function loadOptimizer(
  { path, state }: { path: string; state: TrainerState },
  optimizer: NativeOptimizer,
): Promise<void> {
  try {
    await runJob(optimizer.load((state.optimizer ?? [OPTIMIZER]).map((name) => join(path, name))));
  } catch (error) {
    throw DanceError.from(error);
  }
}
