/** Opening a run's folder together: the same options on all ranks, the same checkpoints to go on from. */
import { type Checkpoint, listCheckpoints, readState, type TrainerState } from "./checkpoint.js";
import type { TrainConfig } from "./config.js";
import { findRunFolder, openRunFolder } from "./run_folder.js";
import type { RunLock } from "./run_lock.js";
import type { Team } from "./team.js";

export interface OpenedRun {
  /** The first rank's, which keeps other processes out for all. */
  lock: RunLock | undefined;
  /** Oldest first, as the first rank sees them. */
  checkpoints: Checkpoint[];
  /** Where the oldest of them that can be read stands; the start without one. The run goes on from there or later. */
  oldest: Pick<TrainerState, "iteration" | "prompts">;
}

async function oldestOf(checkpoints: readonly Checkpoint[]): Promise<OpenedRun["oldest"]> {
  for (const { path } of checkpoints) {
    const state = await readState(path).catch(() => undefined); // restoring tells what is wrong with it
    if (state) return { iteration: state.iteration, prompts: state.prompts };
  }
  return { iteration: 0, prompts: { epoch: 0, index: 0 } };
}

/**
 * The first rank opens the folder, the others find it.
 *
 * @throws {DanceError} `ERR_OUTPUT` as `openRunFolder` does, or when a rank does not see the folder; `ERR_OPTION` when options differ.
 */
export async function openRun(config: TrainConfig, team: Team): Promise<OpenedRun> {
  await team.compareConfigs(config);
  const lock = team.isFirst ? await openRunFolder(config) : undefined;
  try {
    const own = team.isFirst ? await listCheckpoints(config.output.folder) : [];
    const said = await team.gather("run folder", { checkpoints: own, oldest: await oldestOf(own) });
    if (!team.isFirst) await findRunFolder(config);
    const { checkpoints, oldest } = said[0]!;
    return { lock, checkpoints, oldest };
  } catch (error) {
    await lock?.release();
    throw error;
  }
}
