/**
 * What happens before the first iteration: the run's folder and its checkpoints, the prompts and their embeddings, the policy. In this order,
 * because text encoders and the optimizer's state are both large: the encoders are freed before the optimizer takes its memory.
 */
import { appendFile } from "node:fs/promises";
import { join } from "node:path";
import { samplePlan } from "../sample/sampler.js";
import { restoreNewest, type TrainerState } from "./checkpoint.js";
import type { TrainConfig } from "./config.js";
import { type Share, shareOf } from "./deal.js";
import { EmbeddingStore } from "./embeddings.js";
import { evaluationPrompts } from "./evaluation.js";
import { MetricsFile } from "./metrics.js";
import { type OpenedRun, openRun } from "./open_run.js";
import { Policy } from "./policy.js";
import { loadPrompts, PromptOrder, type PromptPosition } from "./prompts.js";
import type { RunLock } from "./run_lock.js";
import type { Team } from "./team.js";
import { groupsOf } from "./together.js";
import type { RunOptions, TrainerParts } from "./trainer.js";
import { configHash } from "./validate.js";

/** What a session is made of. */
export interface Opened {
  share: Share;
  policy: Policy;
  embeddings: EmbeddingStore;
  prompts: string[];
  evaluationPrompts: string[];
  /** The first rank's. */
  metrics: MetricsFile | undefined;
  state: TrainerState;
  lock: RunLock | undefined;
  /** What encoding the prompts took. */
  encodeSeconds: number;
}

const startState = (hash: string): TrainerState => ({
  version: 1,
  iteration: 0,
  updates: 0,
  skippedUpdates: 0,
  prompts: { epoch: 0, index: 0 },
  metricsBytes: 0,
  configHash: hash,
  seconds: 0,
});

/** Options of sampling that are kept under `compat`. */
export const timesteps = ({
  config,
}: TrainerParts): { integerTimesteps: boolean; bf16Timesteps: boolean } => ({
  integerTimesteps: config.compat.integerTimesteps,
  bf16Timesteps: config.compat.bf16Timesteps,
});

export const promptOrder = (
  { seed, compat }: TrainConfig,
  count: number,
  position: PromptPosition,
): PromptOrder => new PromptOrder(count, seed, { sameOrderEveryEpoch: compat.sameOrderEveryEpoch, position });

/** The iteration to end after. */
export const lastIteration = ({ iterations }: TrainConfig, { until = iterations }: RunOptions): number =>
  Math.min(iterations, until);

const promptsOf = async (source: string | string[]): Promise<string[]> =>
  (await loadPrompts(source)).map((prompt) => prompt.text);

/**
 * Everything that can be refused is refused here, before the first picture. All ranks call it.
 *
 * @returns `undefined` when a rank was asked to stop before all prompts were encoded: nothing was learned yet that could be lost.
 */
export async function openTraining(
  parts: TrainerParts,
  options: RunOptions,
  team: Team,
): Promise<Opened | undefined> {
  const { config, pipeline } = parts;
  const prompts = await promptsOf(config.prompts);
  const evaluationPrompts = config.evaluation.every > 0 ? await promptsOf(config.evaluation.prompts) : [];
  samplePlan(pipeline, { ...config.sampling, ...timesteps(parts), window: undefined }); // tells sizes that do not fit
  const share = shareOf(config, team);
  const run = await openRun(config, team);
  const { folder } = config.output;
  const path = join(folder, "metrics.jsonl");
  let policy: Policy | undefined;
  let given = false;
  try {
    policy = await Policy.create(pipeline, config, team);
    // Once nothing is refused any more: a run that is stopped while it encodes has results to look at too.
    if (team.isFirst) await appendFile(path, "");
    const embeddings = new EmbeddingStore(pipeline, config.embeddingCache);
    const encoding = { run, share, embeddings, prompts, evaluationPrompts };
    const started = performance.now();
    if (!(await encodePrompts(parts, options, team, encoding))) return undefined;
    const encodeSeconds = (performance.now() - started) / 1000;
    pipeline.freeTextEncoders();
    await policy.prepare();
    const { onWarning } = options;
    const restored = await restoreNewest(folder, run.checkpoints, policy.optimizer, { team, onWarning });
    const state = restored ?? startState(configHash(config));
    const metrics = team.isFirst ? await MetricsFile.open(path, state.metricsBytes) : undefined;
    given = true;
    const { lock } = run;
    return { share, policy, embeddings, prompts, evaluationPrompts, metrics, state, lock, encodeSeconds };
  } finally {
    if (!given) {
      policy?.[Symbol.dispose]();
      await run.lock?.release();
    }
  }
}

interface Encoding {
  run: OpenedRun;
  share: Share;
  embeddings: EmbeddingStore;
  prompts: string[];
  evaluationPrompts: string[];
}

/** Embeddings of the prompts that this rank will still use. Answers whether no rank was asked to stop. */
async function encodePrompts(
  { config }: TrainerParts,
  options: RunOptions,
  team: Team,
  { run, share, embeddings, prompts, evaluationPrompts: heldOut }: Encoding,
): Promise<boolean> {
  const { signal, stop, onProgress } = options;
  const wanted = evaluationPrompts({ ...config.evaluation, prompts: heldOut, seat: team });
  const first = wanted.length;
  const order = promptOrder(config, prompts.length, run.oldest.prompts);
  const groups = groupsOf(share);
  for (let i = run.oldest.iteration; i < lastIteration(config, options); i++) {
    const numbers = order.take(config.promptsPerIteration);
    wanted.push(...groups.map((group) => prompts[numbers[group]!]!));
  }
  const recorder = await options.recorder?.begin();
  if (recorder && wanted.length > first) {
    await recorder.stage("encode"); // one prompt tells all that a comparison needs
    await embeddings.prepare(wanted.slice(first, first + 1));
    await recorder.end();
  }
  const iteration = (run.checkpoints.at(-1)?.iteration ?? 0) + 1;
  const goesOn = () => stop?.aborted !== true;
  if (goesOn()) {
    await embeddings.prepare(wanted, team.signal(signal), (done, all) => {
      onProgress?.({ stage: "encode", iteration, done, all });
      return goesOn();
    });
  }
  const asked = await team.gather("prompts encoded", !goesOn());
  return !asked.includes(true);
}
