/** Recording a training run, freely running from end to end. */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { detectPlace, type Place } from "../distributed/environment.js";
import { initGroup } from "../distributed/group.js";
import type { Group } from "../distributed/types.js";
import { DanceError } from "../errors.js";
import type { TrainConfig } from "../grpo/config.js";
import { Team } from "../grpo/team.js";
import { GrpoTrainer } from "../grpo/trainer.js";
import { rankDevice } from "../rank_device.js";
import { loadRewards } from "../rewards/index.js";
import type { Level, Summary } from "./dump.js";
import { headerOf } from "./environment.js";
import { DumpRecorder } from "./recorder.js";
import { configSide, OpenSide, type Side } from "./side.js";

export interface RecordOptions {
  out: string;
  level: Level;
  summary: Summary;
  /** Iterations to record, counted from 0. */
  steps: readonly number[];
  /** Which ranks of a launched run record; the others compute with them. Default 0. */
  ranks?: readonly number[];
  /** Default: as the configuration says. */
  side?: Side;
  pictures?: number;
  signal?: AbortSignal;
  onProgress?: (what: string) => void;
}

export interface RecordResult {
  /** Null on a rank that does not record. */
  folder: string | null;
  /** Iterations that were run. */
  iterations: number;
  /** Seconds in all, and of them for recording. */
  seconds: number;
  recording: number;
}

/** Reads `0,5,10-12`. @throws {DanceError} `ERR_USAGE` */
export function parseSteps(text: string, what = "--steps"): number[] {
  const steps = new Set<number>();
  for (const part of text.split(",")) {
    const [, first, last] = /^\s*(\d+)(?:-(\d+))?\s*$/.exec(part) ?? [];
    const [low, high] = [Number(first ?? Number.NaN), Number(last ?? first ?? Number.NaN)];
    if (!(high >= low) || high - low > 100_000)
      throw new DanceError(
        "ERR_USAGE",
        `${what}: expected numbers and ranges such as 0,5,10-12, got ${text}`,
      );
    for (let step = low; step <= high; step++) steps.add(step);
  }
  return [...steps].sort((a, b) => a - b);
}

/** What a recorded run leaves out: it is not there to be kept. */
function recordedConfig(config: TrainConfig, folder: string): TrainConfig {
  return {
    ...config,
    evaluation: { ...config.evaluation, every: 0 },
    output: { ...config.output, folder, checkpointEvery: 0, picturesEvery: 0 },
  };
}

/** The side as this rank opens it: its own accelerator, its share of the threads. */
function rankSide(side: Side, place: Place): Side {
  const { name, options } = rankDevice({ name: side.device, ...side.options }, place);
  return { ...side, device: name, options: { ...options } };
}

/** Records this rank, or (undefined) only computes with the others. */
async function openRecorder(
  open: OpenSide,
  options: RecordOptions,
  folder: string | undefined,
): Promise<DumpRecorder | undefined> {
  if (folder === undefined) return undefined;
  const { device, pipeline, config } = open;
  const { level, summary, steps } = options;
  const header = await headerOf({ level, summary, seed: config.seed, device, pipeline, config });
  const pictures = options.pictures === undefined ? {} : { pictures: options.pictures };
  return DumpRecorder.open(device, { folder, level, summary, steps, ...pictures }, header);
}

async function recordOn(
  open: OpenSide,
  group: Group,
  options: RecordOptions,
  folder: string | undefined,
): Promise<RecordResult> {
  const { device, pipeline, config } = open;
  const team = new Team(group);
  const until = Math.max(...options.steps) + 1;
  using loaded = await loadRewards(config.rewards, { device, vocabularies: [config.model.path] });
  const recorder = await openRecorder(open, options, folder);
  // All ranks have to see it. What lies there is of no use to anybody.
  const below = team.size > 1 ? options.out : tmpdir();
  const own = team.isFirst ? await mkdtemp(join(below, "danceflux-align-")) : undefined;
  const [run] = await team.gather("record", own);
  const started = performance.now();
  let iterations = 0;
  try {
    const trainer = new GrpoTrainer({
      config: recordedConfig(config, run!),
      pipeline,
      rewards: loaded.rewards,
      evaluationRewards: loaded.rewards,
      group,
    });
    const signal = options.signal ? { signal: options.signal } : {};
    const watched = recorder ? { recorder } : {};
    for await (const metrics of trainer.run({ until, ...watched, ...signal })) {
      iterations = metrics.iteration;
      options.onProgress?.(`iteration ${iterations} of ${until}`);
    }
    await recorder?.close();
    await team.meet("recorded");
  } catch (error) {
    await recorder?.salvage();
    throw error;
  } finally {
    if (own !== undefined) await rm(own, { recursive: true, force: true });
  }
  const seconds = (performance.now() - started) / 1000;
  return { folder: folder ?? null, iterations, seconds, recording: recorder?.seconds ?? 0 };
}

/**
 * Runs a configuration from its start until the last of `steps` is over and records those. Nothing but the dump is kept, and nothing of
 * what is computed changes. A process that was started as one of several ranks (by `danceflux launch`, torchrun, Slurm, ...) runs together
 * with the others; each rank that is asked for has its own dump, `out/rank-1`, in which pictures have the numbers that they have on one rank.
 *
 * @throws {DanceError} `ERR_OUTPUT` for a folder that is not empty; `ERR_OPTION` for iterations or ranks that there are not; `ERR_FILE` when
 * the disk is full: what was written until then can be compared.
 */
export async function recordRun(config: TrainConfig, options: RecordOptions): Promise<RecordResult> {
  const last = Math.max(...options.steps);
  if (!(last < config.iterations)) {
    throw new DanceError("ERR_OPTION", `steps: expected iterations below ${config.iterations}, got ${last}`);
  }
  const place = detectPlace({}, process.env);
  const { ranks = [0] } = options;
  if (!ranks.every((rank) => rank < place.size)) {
    const among = place.size === 1 ? "0: this process runs alone" : `below ${place.size}`;
    throw new DanceError("ERR_OPTION", `ranks: expected ${among}, got ${ranks.join(", ")}`);
  }
  options.onProgress?.("loading the model");
  const side = rankSide(options.side ?? configSide(config), place);
  using open = await OpenSide.open(side, config);
  const { signal } = options;
  const group = await initGroup({ device: open.device, ...(signal ? { signal } : {}) });
  try {
    await mkdir(options.out, { recursive: true });
    const own = place.size === 1 ? options.out : join(options.out, `rank-${place.rank}`);
    return await recordOn(open, group, options, ranks.includes(place.rank) ? own : undefined);
  } catch (error) {
    const cause = new Team(group).cause(error);
    group.abort(cause instanceof Error ? cause.message : String(cause));
    throw cause;
  } finally {
    await group.close();
  }
}
