/**
 * Checkpoints: everything that iteration n + 1 depends on. A folder `checkpoints/<iteration>` appears whole or not at all, so a kill at any
 * moment leaves the last good one. Ranks that keep state for themselves write a file each; any number of ranks reads them.
 */
import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { isPictureMeasures, type PictureMeasures } from "../image/picture_check.js";
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
  /** With `output.pictureCheck`: what the first iteration's pictures were like. */
  pictures?: PictureMeasures | undefined;
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

/** A finished one. */
export interface Checkpoint {
  iteration: number;
  path: string;
}

/** Finished checkpoints of a run, oldest first. */
export async function listCheckpoints(runFolder: string): Promise<Checkpoint[]> {
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
  if (team.isFirst) await removeOld(runFolder, state.iteration, keep);
  return final;
}

async function prepareFolder(folder: string, temporary: string): Promise<void> {
  await removeLeftovers(folder);
  await mkdir(temporary, { recursive: true });
}

async function removeOld(runFolder: string, newest: number, keep: number): Promise<void> {
  const all = await listCheckpoints(runFolder);
  // Those ahead of this one could not be read when the run went on from an earlier one.
  const ahead = all.filter(({ iteration }) => iteration > newest);
  const good = all.filter(({ iteration }) => iteration <= newest);
  for (const old of [...ahead, ...good.slice(0, Math.max(0, good.length - keep))])
    await rm(old.path, { recursive: true, force: true });
}

// What a killed run left behind.
async function removeLeftovers(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => [] as string[]);
  for (const name of names.filter((entry) => /\.tmp-\d+$/.test(entry))) {
    await rm(join(folder, name), { recursive: true, force: true });
  }
}

// Plain names: what a state names is read from its own folder.
const isFileList = (value: unknown): boolean =>
  Array.isArray(value) &&
  value.length > 0 &&
  value.every((name) => typeof name === "string" && /^\w[\w.-]*$/.test(name));

/** @throws {DanceError} `ERR_CHECKPOINT` when there is none that this version reads. */
export async function readState(checkpoint: string): Promise<TrainerState> {
  const path = join(checkpoint, STATE);
  try {
    const state = JSON.parse(await readFile(path, "utf8")) as TrainerState | null;
    if (state?.version !== 1 || !Number.isInteger(state.iteration))
      throw new Error("not a trainer state of version 1");
    if (state.optimizer !== undefined && !isFileList(state.optimizer))
      throw new Error("optimizer: expected a list of file names");
    if (state.pictures !== undefined && !isPictureMeasures(state.pictures))
      throw new Error("pictures: expected measures of pictures");
    return state;
  } catch (cause) {
    throw new DanceError("ERR_CHECKPOINT", `${path}: cannot be read (${(cause as Error).message})`, {
      cause,
    });
  }
}

/** What a file may be found to be, as opposed to what may happen to the device that reads it. */
const UNREADABLE: readonly string[] = [
  "ERR_CHECKPOINT",
  "ERR_FILE",
  "ERR_SAFETENSORS",
  "ERR_WEIGHTS",
  "ERR_DTYPE",
];

/** Reads what however many ranks wrote. Answers why not, where the files are at fault. */
async function restore(path: string, optimizer: NativeOptimizer): Promise<TrainerState | string> {
  try {
    const state = await readState(path);
    await runJob(optimizer.load((state.optimizer ?? [OPTIMIZER]).map((name) => join(path, name))));
    return state;
  } catch (cause) {
    const error = DanceError.from(cause);
    if (!UNREADABLE.includes(error.code)) throw error;
    return error.message;
  }
}

/**
 * Puts the newest checkpoint that all ranks can read into their optimizers (and the weights that these move). `undefined`: there is none at
 * all.
 *
 * @param checkpoints Oldest first, as the first rank sees them; the same on all ranks, and all call it.
 * @param onWarning Told of each newer one that cannot be read, and why.
 * @throws {DanceError} `ERR_CHECKPOINT` when none of them can be read, naming each.
 */
export async function restoreNewest(
  runFolder: string,
  checkpoints: readonly Checkpoint[],
  optimizer: NativeOptimizer,
  { team = new Team(), onWarning }: { team?: Team; onWarning?: (message: string) => void } = {},
): Promise<TrainerState | undefined> {
  const failures: string[] = [];
  for (const [i, { path, iteration }] of [...checkpoints].reverse().entries()) {
    const found = await restore(path, optimizer);
    const said = await team.gather("checkpoint read", typeof found === "string" ? found : null);
    const failure = said.find((each) => each !== null);
    if (typeof found !== "string" && !failure) return found;
    failures.push(failure!);
    const next = checkpoints.at(-2 - i);
    if (next) onWarning?.(`checkpoint ${iteration} is skipped for ${next.iteration}: ${failure}`);
  }
  if (failures.length === 0) return undefined;
  throw new DanceError("ERR_CHECKPOINT", `${runFolder}: no checkpoint can be read: ${failures.join("; ")}`, {
    hint: "remove the folder's checkpoints to start again, or choose another output.folder",
  });
}
