/**
 * Replaying a dump: every stage gets what it got on side A, so that each is compared by itself. What differs in a stage then began there,
 * and was not handed down.
 */
import { DanceError } from "../errors.js";
import { mixedAdvantages } from "../grpo/advantage.js";
import type { TrainConfig } from "../grpo/config.js";
import { learningRateAt } from "../grpo/learning_rate.js";
import { Policy } from "../grpo/policy.js";
import { loadPrompts, PromptOrder } from "../grpo/prompts.js";
import { noiseKeys, type Sample, watcher } from "../grpo/rollout.js";
import { Team } from "../grpo/team.js";
import { update } from "../grpo/update.js";
import { windowAt } from "../grpo/window.js";
import type { PromptEmbedding } from "../models/types.js";
import { type NativeTensor, runJob } from "../native.js";
import { loadRewards, type WeightedReward } from "../rewards/index.js";
import { fillMissing, type RewardScores, scoreAll, scoreRequest } from "../rewards/scorer.js";
import {
  batches,
  guidanceOf,
  promptKey,
  type SamplePlan,
  samplePlan,
  sharedEmbeddings,
  timestepOf,
} from "../sample/sampler.js";
import type { Dump } from "./dump.js";
import { headerOf } from "./environment.js";
import { RecordedTensors } from "./recorded.js";
import { DumpRecorder } from "./recorder.js";
import { configSide, OpenSide, type Side } from "./side.js";

export interface ReplayOptions {
  out: string;
  side?: Side;
  /** How deep B is recorded; default: as A. */
  level?: Dump["header"]["level"];
  onProgress?: (what: string) => void;
}

/** What replaying one iteration works with. */
interface Scene {
  open: OpenSide;
  config: TrainConfig;
  recorder: DumpRecorder;
  recorded: RecordedTensors;
  policy: Policy;
  rewards: WeightedReward[];
  plan: SamplePlan;
  iteration: number;
  prompts: string[];
  embeddings: PromptEmbedding[];
  /** Which samples A holds. */
  count: number;
}

const seedOf = (config: TrainConfig): bigint => BigInt(config.seed);

async function embeddingsOf(
  open: OpenSide,
  recorded: RecordedTensors,
  count: number,
): Promise<PromptEmbedding[]> {
  const embeddings: PromptEmbedding[] = [];
  for (let i = 0; i < count; i++) {
    const text = await recorded.upload(open.device, "prompts", `text.${i}`, "input");
    const pooled = await recorded.upload(open.device, "prompts", `pooled.${i}`, "input");
    embeddings.push({
      text,
      pooled,
      [Symbol.dispose]() {
        text.dispose();
        pooled.dispose();
      },
    });
  }
  return embeddings;
}

const groupOf = (scene: Scene, sample: number): number => Math.floor(sample / scene.config.groupSize);

/** Every step of every sample, from the latents that A had. */
async function replaySampling(scene: Scene): Promise<void> {
  const { open, config, plan, recorder, recorded, iteration } = scene;
  const { pipeline, device } = open;
  const numbers = Array.from({ length: scene.count }, (_, i) => i);
  for (let step = 0; step < plan.kinds.length; step++) {
    for (const rows of batches(numbers, config.sampling.batch)) {
      const watch = watcher(recorder, Math.floor(rows[0]! / config.sampling.batch), rows);
      const held = rows.map((row) => ({ embedding: scene.embeddings[groupOf(scene, row)]! }));
      const latents = await recorded.uploadRows(device, `rollout/s${step}`, "latents", "input", rows);
      await watch.before(step, latents);
      const kind = plan.kinds[step]!;
      const key = { ...config.sampling, seed: seedOf(config), iteration, ...config.compat };
      const noise = rows.map((row) =>
        noiseKeys(key, scene.prompts[groupOf(scene, row)]!, row % config.groupSize).stepNoise(step),
      );
      const result = await runJob(
        pipeline.transformer.sampleStep({
          ...sharedEmbeddings(held),
          latents: rows.map((_, row) => ({ tensor: latents, row })),
          timesteps: rows.map(() => timestepOf(plan, step)),
          guidance: guidanceOf(pipeline, plan, rows.length),
          gridRows: plan.grid.rows,
          gridColumns: plan.grid.columns,
          kind,
          eta: plan.eta,
          sigmas: rows.map(() => plan.sigmas[step]!),
          nextSigmas: rows.map(() => plan.sigmas[step + 1]!),
          ...(kind === "ode" ? {} : { noise }),
          denoised: false,
        }),
      );
      await watch.after(step, result);
      for (const tensor of Object.values(result)) tensor.dispose();
      latents.dispose();
    }
  }
}

async function replayDecoding(scene: Scene): Promise<void> {
  const { open, config, plan, recorder, recorded } = scene;
  const numbers = Array.from({ length: scene.count }, (_, i) => i);
  for (const rows of batches(numbers, config.sampling.batch)) {
    const watch = watcher(recorder, Math.floor(rows[0]! / config.sampling.batch), rows);
    const latents = await recorded.uploadRows(open.device, "decode", "latents", "input", rows);
    await watch.decoding();
    const images = await open.pipeline.decode(latents, plan.grid.rows, plan.grid.columns);
    await watch.decoded(latents, images);
    images.dispose();
    latents.dispose();
  }
}

/** Scores of A's pictures; advantages of A's scores. */
async function replayJudging(scene: Scene): Promise<number[]> {
  const { open, config, recorder, recorded, rewards } = scene;
  const numbers = Array.from({ length: scene.count }, (_, i) => i);
  const all: RewardScores[] = [];
  for (const rows of batches(numbers, config.sampling.batch)) {
    const images = await recorded.uploadRows(open.device, "decode", "images", "output", rows);
    const prompts = rows.map((row) => scene.prompts[groupOf(scene, row)]!);
    const scores = await scoreAll(
      rewards,
      scoreRequest(open.device.handle, images, prompts, scene.iteration),
    );
    images.dispose();
    for (const [i, entry] of scores.entries()) {
      if (all[i]) all[i].scores.push(...entry.scores);
      else all[i] = { ...entry, scores: [...entry.scores] };
    }
  }
  await recorder.stage("reward");
  for (const { name, scores } of all) recorder.numbers(name, scores);
  const groups = numbers.map((row) => groupOf(scene, row));
  const known = all.map((entry) => ({ ...entry, scores: recorded.numbers("reward", entry.name) }));
  const { values } = mixedAdvantages(fillMissing(known, groups), groups, config.learning);
  await recorder.stage("advantage");
  recorder.numbers("advantages", values);
  return recorded.numbers("advantage", "advantages");
}

/** Samples as a rollout would have left them. */
async function samplesOf(scene: Scene, owned: Set<NativeTensor>): Promise<Sample[]> {
  const { open, plan, recorded } = scene;
  const upload = async (stage: string, name: string, role: "input" | "output") => {
    const tensor = await recorded.upload(open.device, stage, name, role);
    owned.add(tensor);
    return tensor;
  };
  const samples: Sample[] = [];
  for (let number = 0; number < scene.count; number++) {
    const steps: Sample["trajectory"]["steps"] = [];
    for (const [step, kind] of plan.kinds.entries()) {
      if (kind === "ode") continue;
      const stage = `rollout/s${step}`;
      steps.push({
        step,
        latents: await upload(stage, `latents.${number}`, "input"),
        next: await upload(stage, `next.${number}`, "output"),
        logProbs: Float32Array.from(recorded.numbers(stage, `logProb.${number}`)),
      });
    }
    const group = groupOf(scene, number);
    const images = await upload("decode", `images.${number}`, "output");
    const trajectory = { final: images, steps, [Symbol.dispose]() {} };
    const [prompt, embedding] = [scene.prompts[group]!, scene.embeddings[group]!];
    samples.push({
      prompt,
      embedding,
      group,
      index: number % scene.config.groupSize,
      trajectory,
      row: 0,
      images,
    });
  }
  return samples;
}

async function replayLearning(scene: Scene, advantages: number[]): Promise<void> {
  const { open, config, plan, policy, iteration } = scene;
  const owned = new Set<NativeTensor>();
  try {
    const perIteration = scene.count / config.learning.accumulate;
    await update(open.pipeline, policy.optimizer, await samplesOf(scene, owned), advantages, {
      learning: config.learning,
      plan,
      seed: seedOf(config),
      iteration,
      recomputeBlocks: config.learning.recompute === "all" ? -1 : 0,
      learningRate: (done) => learningRateAt(config, done),
      updatesDone: iteration * perIteration,
      perUpdate: config.learning.accumulate,
      ranks: 1,
      sharded: false,
      ordered: config.distributed.collective === "ordered",
      recorder: scene.recorder,
    });
  } finally {
    for (const tensor of owned) tensor.dispose();
  }
}

function planOf({ pipeline }: OpenSide, config: TrainConfig, iteration: number): SamplePlan {
  const { window } = config.sampling;
  const { integerTimesteps, bf16Timesteps } = config.compat;
  return samplePlan(pipeline, {
    ...config.sampling,
    integerTimesteps,
    bf16Timesteps,
    window: window && windowAt(window, config.sampling.steps, iteration, seedOf(config)),
  });
}

async function replayIteration(scene: Scene): Promise<void> {
  const { recorder, config } = scene;
  const count = config.promptsPerIteration;
  await recorder.stage("prompts");
  for (const [i, { text, pooled }] of scene.embeddings.slice(0, count).entries()) {
    await recorder.tensor("text", "input", text, [i]);
    await recorder.tensor("pooled", "input", pooled, [i]);
    recorder.numbers(`key.${i}`, [promptKey(scene.prompts[i]!)]);
  }
  await replaySampling(scene);
  await replayDecoding(scene);
  await replayLearning(scene, await replayJudging(scene));
  await recorder.end();
}

/** Iterations that a dump holds. */
export const iterationsOf = (dump: Dump): number[] =>
  [
    ...new Set(
      dump.records.map(({ stage }) => /^it(\d+)\//.exec(stage)?.[1]).filter((each) => each !== undefined),
    ),
  ].map(Number);

/**
 * Replays the iterations of a dump on another side, each stage from A's own inputs, and records what comes out. An iteration after the
 * first needs the weights that A had then: the iteration before it must be in the dump too.
 *
 * @throws {DanceError} `ERR_DUMP` when A holds no whole tensors (`--summary full`) or an iteration without the weights before it.
 */
export async function replayDump(given: TrainConfig, a: Dump, options: ReplayOptions): Promise<string> {
  if (a.header.summary !== "full") {
    throw new DanceError(
      "ERR_DUMP",
      `${a.folder}: expected a dump with whole tensors, got ${a.header.summary}`,
      {
        hint: "record side A with --summary full",
      },
    );
  }
  options.onProgress?.("loading the model");
  using open = await OpenSide.open(options.side ?? configSide(given), given);
  const { config, device, pipeline } = open;
  using loaded = await loadRewards(config.rewards, { device, vocabularies: [config.model.path] });
  using policy = await Policy.create(pipeline, config, new Team());
  await policy.prepare();
  const steps = iterationsOf(a);
  const level = options.level ?? a.header.level;
  const header = await headerOf({ level, summary: "full", seed: config.seed, device, pipeline, config });
  const recorder = await DumpRecorder.open(
    device,
    { folder: options.out, level, summary: "full", steps },
    header,
  );
  const all = (await loadPrompts(config.prompts)).map(({ text }) => text);
  const order = new PromptOrder(all.length, config.seed, {
    sameOrderEveryEpoch: config.compat.sameOrderEveryEpoch,
    position: { epoch: 0, index: 0 },
  });
  let taken = 0;
  for (const iteration of steps) {
    options.onProgress?.(`iteration ${iteration}`);
    await using recorded = new RecordedTensors(a, iteration);
    if (iteration > 0) await recorded.setWeights(pipeline);
    if (iteration > taken) order.take((iteration - taken) * config.promptsPerIteration);
    const prompts = order.take(config.promptsPerIteration).map((number) => all[number]!);
    taken = iteration + 1;
    await recorder.iteration(iteration);
    const embeddings = await embeddingsOf(open, recorded, prompts.length);
    try {
      const plan = planOf(open, config, iteration);
      const count = config.promptsPerIteration * config.groupSize;
      const rest = { policy, rewards: loaded.rewards, plan, iteration, prompts, embeddings, count };
      await replayIteration({ open, config, recorder, recorded, ...rest });
    } finally {
      for (const embedding of embeddings) embedding[Symbol.dispose]();
    }
  }
  await recorder.close();
  return options.out;
}
