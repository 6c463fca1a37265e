/** Recording a training run, freely running from end to end. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DanceError } from "../errors.js";
import type { TrainConfig } from "../grpo/config.js";
import { GrpoTrainer } from "../grpo/trainer.js";
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
  /** Default: as the configuration says. */
  side?: Side;
  pictures?: number;
  signal?: AbortSignal;
  onProgress?: (what: string) => void;
}

export interface RecordResult {
  folder: string;
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

/**
 * Runs a configuration from its start until the last of `steps` is over and records those. Nothing but the dump is kept, and nothing of
 * what is computed changes.
 *
 * @throws {DanceError} `ERR_OUTPUT` for a folder that is not empty; `ERR_FILE` when the disk is full: what was written until then can be
 * compared.
 */
export async function recordRun(config: TrainConfig, options: RecordOptions): Promise<RecordResult> {
  const last = Math.max(...options.steps);
  if (!(last < config.iterations)) {
    throw new DanceError("ERR_OPTION", `steps: expected iterations below ${config.iterations}, got ${last}`);
  }
  options.onProgress?.("loading the model");
  using open = await OpenSide.open(options.side ?? configSide(config), config);
  const { device, pipeline } = open;
  using loaded = await loadRewards(open.config.rewards, { device, vocabularies: [config.model.path] });
  const { out: folder, level, summary, steps } = options;
  const header = await headerOf({ level, summary, seed: config.seed, device, pipeline, config: open.config });
  const pictures = options.pictures === undefined ? {} : { pictures: options.pictures };
  const recorder = await DumpRecorder.open(device, { folder, level, summary, steps, ...pictures }, header);
  const run = await mkdtemp(join(tmpdir(), "danceflux-align-"));
  const started = performance.now();
  let iterations = 0;
  try {
    const trainer = new GrpoTrainer({
      config: recordedConfig(open.config, run),
      pipeline,
      rewards: loaded.rewards,
      evaluationRewards: loaded.rewards,
    });
    const signal = options.signal ? { signal: options.signal } : {};
    for await (const metrics of trainer.run({ recorder, ...signal })) {
      iterations = metrics.iteration;
      options.onProgress?.(`iteration ${iterations} of ${last + 1}`);
      if (iterations > last) break;
    }
    await recorder.close();
  } catch (error) {
    await recorder.salvage();
    throw error;
  } finally {
    await rm(run, { recursive: true, force: true });
  }
  return { folder, iterations, seconds: (performance.now() - started) / 1000, recording: recorder.seconds };
}
