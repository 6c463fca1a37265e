/** A whole training run from a configuration: device, models, rewards, trainer, summary and report. */
import { join } from "node:path";
import { type Device, openDevice } from "./device.js";
import { detectPlace } from "./distributed/environment.js";
import { initGroup } from "./distributed/group.js";
import type { Group } from "./distributed/types.js";
import type { RewardConfig, TrainConfig } from "./grpo/config.js";
import { checkDeal } from "./grpo/deal.js";
import type { IterationMetrics } from "./grpo/metrics.js";
import { Team } from "./grpo/team.js";
import { GrpoTrainer, type RunOptions } from "./grpo/trainer.js";
import { loadPipeline } from "./models/pipeline.js";
import { writeAtomically } from "./models/save.js";
import type { Pipeline } from "./models/types.js";
import { rankDevice } from "./rank_device.js";
import { writeReport } from "./report/index.js";
import { readRun } from "./report/run.js";
import { summarize, type TrainSummary } from "./report/summary.js";
import { checkRewards, type LoadRewardOptions, loadReward, type WeightedReward } from "./rewards/index.js";
import type { Reward } from "./rewards/types.js";

export interface TrainRunOptions extends RunOptions {
  /** Told what is being loaded, for people who wait. */
  onLoading?: (what: string) => void;
  onIteration?: (metrics: IterationMetrics) => void;
  /** Told who this process is among its ranks, before anything is loaded. */
  onRank?: (rank: number, size: number) => void;
}

export interface TrainResult {
  /** False: it was asked to stop before its last iteration, and can be resumed. */
  finished: boolean;
  folder: string;
  summary: TrainSummary;
  /** Path of the report. */
  report: string;
}

/** Rewards of training and evaluation; one that both have is loaded once. */
class RewardSet implements Disposable {
  readonly #loaded = new Map<string, Reward>();

  async load(configs: readonly RewardConfig[], options: LoadRewardOptions): Promise<WeightedReward[]> {
    const mixture: WeightedReward[] = [];
    for (const config of configs) {
      const { weight = 1, required = true, ...what } = config;
      const key = JSON.stringify(Object.entries(what).sort(([a], [b]) => (a < b ? -1 : 1)));
      const reward = this.#loaded.get(key) ?? (await loadReward(config, options));
      this.#loaded.set(key, reward);
      mixture.push({ reward, weight, required });
    }
    return mixture;
  }

  [Symbol.dispose](): void {
    for (const reward of this.#loaded.values()) reward.dispose();
  }
}

async function runOn(
  device: Device,
  pipeline: Pipeline,
  config: TrainConfig,
  group: Group,
  options: TrainRunOptions,
): Promise<void> {
  using rewardSet = new RewardSet();
  options.onLoading?.("rewards");
  const source: LoadRewardOptions = { device, vocabularies: [config.model.path] };
  if (options.signal) source.signal = options.signal;
  const rewards = await rewardSet.load(config.rewards, source);
  const { rewards: own } = config.evaluation;
  const evaluationRewards = own ? await rewardSet.load(own, source) : rewards;
  const trainer = new GrpoTrainer({ config, pipeline, rewards, evaluationRewards, group });
  for await (const metrics of trainer.run(options)) options.onIteration?.(metrics);
}

/** Writes `summary.json` and `report.html` of a run folder, as far as the run got. */
async function writeResults(config: TrainConfig, device: string): Promise<TrainResult> {
  const { folder } = config.output;
  const summary = { ...summarize(await readRun(folder)), device };
  await writeAtomically(join(folder, "summary.json"), `${JSON.stringify(summary, null, 2)}\n`);
  const report = await writeReport(folder);
  return { finished: summary.iterations >= config.iterations, folder, summary, report };
}

async function trainOn(
  device: Device,
  config: TrainConfig,
  group: Group,
  options: TrainRunOptions,
): Promise<TrainResult> {
  const team = new Team(group);
  const { path, dtype } = config.model;
  const signal = team.signal(options.signal);
  await team.compareConfigs(config); // before gigabytes are read in vain
  using pipeline = await loadPipeline(path, {
    device,
    ...(dtype ? { dtype } : {}),
    ...(signal ? { signal } : {}),
    ...(options.onLoading ? { onProgress: options.onLoading } : {}),
  });
  let begun = false;
  const onProgress: RunOptions["onProgress"] = (progress) => {
    begun = true;
    options.onProgress?.(progress);
  };
  try {
    await runOn(device, pipeline, config, group, { ...options, onProgress });
  } catch (error) {
    // What was measured until then is worth looking at. A run that never began may have been refused its folder: another run's.
    if (begun && team.isFirst) await writeResults(config, device.description).catch(() => {});
    throw error;
  }
  const [result] = await team.gather(
    "results",
    team.isFirst ? await writeResults(config, device.description) : null,
  );
  return result!;
}

/**
 * Trains as a configuration (see `loadConfig`) says, or goes on where an earlier run in its folder stopped. At the end, also when asked to
 * stop, the folder holds `summary.json` and `report.html`. A process that was started as one of several ranks (by `danceflux launch`, torchrun,
 * Slurm, ...) trains together with the others.
 *
 * @throws {DanceError} as `openDevice`, `initGroup`, `loadPipeline`, `loadReward` and `GrpoTrainer.run` do.
 */
export async function trainFromConfig(
  config: TrainConfig,
  options: TrainRunOptions = {},
): Promise<TrainResult> {
  checkRewards("config: rewards", config.rewards);
  const place = detectPlace({}, process.env);
  options.onRank?.(place.rank, place.size);
  checkDeal(config, place.size);
  const own = rankDevice(config.device, place);
  using device = openDevice(own.name, own.options);
  const { signal } = options;
  const group = await initGroup({ device, ...(signal ? { signal } : {}) });
  try {
    return await trainOn(device, config, group, options);
  } catch (error) {
    const cause = new Team(group).cause(error);
    group.abort(cause instanceof Error ? cause.message : String(cause));
    throw cause;
  } finally {
    await group.close();
  }
}
