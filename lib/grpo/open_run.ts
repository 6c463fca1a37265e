/** Opening a run's folder together: the same options on all ranks, the same checkpoint to go on from. */
import { DanceError } from "../errors.js";
import { latestCheckpoint, readCheckpoint } from "./checkpoint.js";
import type { TrainConfig } from "./config.js";
import { findRunFolder, openRunFolder } from "./run_folder.js";
import type { Team } from "./team.js";
import { configHash } from "./validate.js";

/**
 * The first rank opens the folder, the others find it. Answers the last checkpoint, as the first rank sees it.
 *
 * @throws {DanceError} `ERR_OUTPUT` as `openRunFolder` does, or when a rank does not see the folder; `ERR_OPTION` when options differ;
 * `ERR_CHECKPOINT` when the checkpoint cannot be read.
 */
export async function openRun(config: TrainConfig, team: Team): ReturnType<typeof latestCheckpoint> {
  if (team.isFirst) await openRunFolder(config);
  const found = team.isFirst ? await latestCheckpoint(config.output.folder) : undefined;
  const hash = configHash(config);
  const said = await team.gather("run folder", { hash, checkpoint: found?.path ?? null });
  const other = said.findIndex((each) => each.hash !== said[0]!.hash);
  if (other >= 0) {
    throw new DanceError(
      "ERR_OPTION",
      `config: expected the same options on all ranks, got others on rank ${other} than on rank 0`,
    );
  }
  if (team.isFirst) return found;
  await findRunFolder(config);
  const { checkpoint } = said[0]!;
  return checkpoint === null ? undefined : readCheckpoint(checkpoint);
}
