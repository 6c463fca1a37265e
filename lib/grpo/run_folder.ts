/** The folder of a run: whose it is, and what is in it. */
import { access, constants, mkdir, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import { writeAtomically } from "../models/save.js";
import type { TrainConfig } from "./config.js";
import { LOCK, lockRunFolder, type RunLock } from "./run_lock.js";
import { configHash } from "./validate.js";

const CONFIG = "config.json";

/** The lock, and what is left of one when two processes came upon a dead one's. */
const isOfLock = (name: string) => name === LOCK || name.startsWith(`${LOCK}.tmp-`);

/**
 * Makes the folder, or makes sure that it holds an earlier part of the same run. Answers its lock, which keeps other processes out.
 *
 * @throws {DanceError} `ERR_OUTPUT` when it cannot be written, holds something else or a run with other options, or is in use.
 */
export async function openRunFolder(config: TrainConfig): Promise<RunLock> {
  const { folder } = config.output;
  try {
    await mkdir(folder, { recursive: true });
    await access(folder, constants.W_OK | constants.X_OK);
  } catch (cause) {
    throw new DanceError("ERR_OUTPUT", `${folder}: cannot be written (${(cause as Error).message})`, {
      cause,
    });
  }
  const lock = await lockRunFolder(folder);
  try {
    const names = (await readdir(folder)).filter((name) => !isOfLock(name));
    if (names.length > 0) await checkSameRun(config, names);
    await writeAtomically(
      join(folder, CONFIG),
      `${JSON.stringify({ hash: configHash(config), config }, null, 2)}\n`,
    );
    return lock;
  } catch (error) {
    await lock.release();
    throw error;
  }
}

async function checkSameRun(config: TrainConfig, names: string[]): Promise<void> {
  const { folder } = config.output;
  if (!names.includes(CONFIG)) {
    throw new DanceError(
      "ERR_OUTPUT",
      `${folder}: expected an empty folder or a run to resume, got ${names.length} other files`,
    );
  }
  let hash: unknown;
  try {
    hash = (JSON.parse(await readFile(join(folder, CONFIG), "utf8")) as { hash?: unknown } | null)?.hash;
  } catch (cause) {
    throw new DanceError("ERR_OUTPUT", `${join(folder, CONFIG)}: expected the configuration of a run`, {
      cause,
    });
  }
  if (typeof hash !== "string") {
    throw new DanceError(
      "ERR_OUTPUT",
      `${join(folder, CONFIG)}: expected the configuration of a run, got another`,
    );
  }
  // Nothing beside it: that run was refused before it began, and other options may try again.
  if (names.length > 1 && hash !== configHash(config)) {
    throw new DanceError("ERR_OUTPUT", `${folder}: it holds a run with other options`, {
      hint: "choose another output.folder, or use the same options to resume",
    });
  }
}

/**
 * Makes sure that this rank sees the folder that the first rank opened.
 *
 * @throws {DanceError} `ERR_OUTPUT` when it does not.
 */
export async function findRunFolder(config: TrainConfig): Promise<void> {
  const { folder } = config.output;
  const names = await readdir(folder).catch(() => [] as string[]);
  if (names.includes(CONFIG)) return checkSameRun(config, names);
  throw new DanceError("ERR_OUTPUT", `${folder}: expected the run folder that the first rank opened`, {
    hint: "output.folder must be on a file system that all ranks share",
  });
}

export const evaluationFolder = (runFolder: string, iteration: number): string =>
  join(runFolder, "evaluation", String(iteration).padStart(6, "0"));

export const picturesFolder = (runFolder: string, iteration: number): string =>
  join(runFolder, "pictures", String(iteration).padStart(6, "0"));
