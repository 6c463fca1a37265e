/**
 * Checkpoints: everything that iteration n + 1 depends on. A folder `checkpoints/<iteration>` appears whole or not at all, so a kill at any
 * moment leaves the last good one.
 */
import { mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { type NativeOptimizer, runJob } from "../native.js";

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

/**
 * Saves the state after an iteration and removes checkpoints beyond the last `keep`.
 *
 * @throws {DanceError} `ERR_CHECKPOINT` when it cannot be written; earlier checkpoints are untouched then.
 */
export async function saveCheckpoint(
  runFolder: string,
  state: TrainerState,
  optimizer: NativeOptimizer,
  keep: number,
): Promise<string> {
  const folder = join(runFolder, "checkpoints");
  const final = join(folder, nameOf(state.iteration));
  const temporary = `${final}.tmp-${process.pid}`;
  try {
    await removeLeftovers(folder);
    await mkdir(temporary, { recursive: true });
    await runJob(optimizer.save(join(temporary, OPTIMIZER)));
    await writeSynced(join(temporary, STATE), `${JSON.stringify(state, null, 2)}\n`);
    await syncFolder(temporary);
    await rm(final, { recursive: true, force: true });
    await rename(temporary, final);
    await syncFolder(folder);
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true }).catch(() => {});
    throw new DanceError(
      "ERR_CHECKPOINT",
      `${final}: the checkpoint cannot be written (${(cause as Error).message})`,
      { cause },
    );
  }
  const all = await listCheckpoints(runFolder);
  // Those ahead of this one could not be read when the run went on from an earlier one.
  const ahead = all.filter(({ iteration }) => iteration > state.iteration);
  const good = all.filter(({ iteration }) => iteration <= state.iteration);
  for (const old of [...ahead, ...good.slice(0, Math.max(0, good.length - keep))])
    await rm(old.path, { recursive: true, force: true });
  return final;
}

// What a killed run left behind.
async function removeLeftovers(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => [] as string[]);
  for (const name of names.filter((entry) => /\.tmp-\d+$/.test(entry))) {
    await rm(join(folder, name), { recursive: true, force: true });
  }
}

async function readState(checkpoint: string): Promise<TrainerState> {
  const path = join(checkpoint, STATE);
  try {
    const state = JSON.parse(await readFile(path, "utf8")) as TrainerState | null;
    if (state?.version !== 1 || !Number.isInteger(state.iteration))
      throw new Error("not a trainer state of version 1");
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

/**
 * Puts the newest checkpoint that can be read into the optimizer (and the weights that it moves). `undefined`: there is none at all.
 *
 * @param onWarning Told of each newer one that cannot be read, and why.
 * @throws {DanceError} `ERR_CHECKPOINT` when none of them can be read, naming each.
 */
export async function restoreNewest(
  runFolder: string,
  optimizer: NativeOptimizer,
  onWarning?: (message: string) => void,
): Promise<TrainerState | undefined> {
  const all = (await listCheckpoints(runFolder)).reverse();
  const failures: string[] = [];
  for (const [i, { path, iteration }] of all.entries()) {
    try {
      const state = await readState(path);
      await runJob(optimizer.load(join(path, OPTIMIZER)));
      return state;
    } catch (cause) {
      const error = DanceError.from(cause);
      if (!UNREADABLE.includes(error.code)) throw error;
      failures.push(error.message);
      const next = all[i + 1];
      if (next) onWarning?.(`checkpoint ${iteration} is skipped for ${next.iteration}: ${error.message}`);
    }
  }
  if (failures.length === 0) return undefined;
  throw new DanceError("ERR_CHECKPOINT", `${runFolder}: no checkpoint can be read: ${failures.join("; ")}`, {
    hint: "remove the folder's checkpoints to start again, or choose another output.folder",
  });
}
