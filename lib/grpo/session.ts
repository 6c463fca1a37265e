/** One run of the trainer: rollout, score, advantages, update; evaluation, metrics and checkpoints around it. */
import { rm, writeFile } from "node:fs/promises";
import { freemem } from "node:os";
import { join } from "node:path";
import { AsyncImageWriter } from "../image/index.js";
import type { PromptEmbedding } from "../models/types.js";
import {
  appendScores,
  fillMissing,
  missingScores,
  type RewardScores,
  scoreAll,
  scoreRequest,
} from "../rewards/scorer.js";
import { type SamplePlan, samplePlan } from "../sample/sampler.js";
import { mixedAdvantages } from "./advantage.js";
import { latestCheckpoint, loadOptimizer, saveCheckpoint, type TrainerState } from "./checkpoint.js";
import { blocksToRecompute } from "./cost.js";
import { EmbeddingStore } from "./embeddings.js";
import { evaluate } from "./evaluation.js";
import { learningRateAt } from "./learning_rate.js";
import { type IterationMetrics, MetricsFile, noSeconds, type StageSeconds, spread } from "./metrics.js";
import { type PictureReport, PictureWatch } from "./picture_watch.js";
import { Policy } from "./policy.js";
import { loadPrompts, PromptOrder, type PromptPosition } from "./prompts.js";
import type { StageRecorder } from "./recorder.js";
import { iterationMetrics } from "./report_iteration.js";
import { type Rollout, rollout } from "./rollout.js";
import { evaluationFolder, openRunFolder, picturesFolder } from "./run_folder.js";
import type { RunOptions, TrainerParts } from "./trainer.js";
import { type UpdateReport, update } from "./update.js";
import { configHash } from "./validate.js";
import { windowAt } from "./window.js";

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

/** Thrown inside to give up a rollout; never leaves this file. */
class Stopped extends Error {}

export class Session {
  readonly #parts: TrainerParts;
  readonly #options: RunOptions;
  readonly #policy: Policy;
  readonly #embeddings: EmbeddingStore;
  readonly #prompts: string[];
  readonly #order: PromptOrder;
  readonly #evaluationPrompts: string[];
  readonly #metrics: MetricsFile;
  readonly #writer = new AsyncImageWriter();
  readonly #state: TrainerState;
  #saved: number;
  #textTokens = 0;
  #pictureWatch: PictureWatch | undefined;
  /** Of the iteration under way. */
  #recorder: StageRecorder | undefined;

  private constructor(
    parts: TrainerParts,
    options: RunOptions,
    made: {
      policy: Policy;
      embeddings: EmbeddingStore;
      prompts: string[];
      evaluationPrompts: string[];
      metrics: MetricsFile;
      state: TrainerState;
    },
  ) {
    this.#parts = parts;
    this.#options = options;
    this.#policy = made.policy;
    this.#embeddings = made.embeddings;
    this.#prompts = made.prompts;
    this.#order = this.#orderFrom(made.state.prompts);
    this.#evaluationPrompts = made.evaluationPrompts;
    this.#metrics = made.metrics;
    this.#state = made.state;
    this.#saved = made.state.iteration;
    if (parts.config.output.pictureCheck) this.#pictureWatch = new PictureWatch(parts.pipeline.vaeFactor * 2);
  }

  /** Everything that can be refused is refused here, before the first picture. */
  static async open(parts: TrainerParts, options: RunOptions): Promise<Session> {
    const { config, pipeline } = parts;
    const prompts = await promptsOf(config.prompts);
    const evaluationPrompts = config.evaluation.every > 0 ? await promptsOf(config.evaluation.prompts) : [];
    samplePlan(pipeline, { ...config.sampling, ...timesteps(parts), window: undefined }); // tells sizes that do not fit
    await openRunFolder(config);
    const checkpoint = await latestCheckpoint(config.output.folder);
    const state = checkpoint?.state ?? startState(configHash(config));
    const policy = await Policy.create(pipeline, config.learning, BigInt(config.seed));
    try {
      if (checkpoint) await loadOptimizer(checkpoint.path, policy.optimizer);
      const metrics = await MetricsFile.open(join(config.output.folder, "metrics.jsonl"), state.metricsBytes);
      const embeddings = new EmbeddingStore(pipeline, config.embeddingCache);
      return new Session(parts, options, { policy, embeddings, prompts, evaluationPrompts, metrics, state });
    } catch (error) {
      policy[Symbol.dispose]();
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#writer.flush().catch(() => {});
    await this.#metrics.close();
    this.#policy[Symbol.dispose]();
  }

  async *iterations(): AsyncGenerator<IterationMetrics> {
    const { config, pipeline } = this.#parts;
    try {
      await this.#encodeAll();
      pipeline.freeTextEncoders();
      if (this.#state.iteration === 0) await this.#evaluate();
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
      return; // nothing was learned yet that could be lost
    }
    while (this.#state.iteration < config.iterations && !this.#options.stop?.aborted) {
      const metrics = await this.#iteration();
      if (!metrics) break; // asked to stop in the middle of a rollout
      yield metrics;
    }
    await this.#checkpoint();
    if (this.#state.iteration >= config.iterations) await this.#finish();
  }

  /** Embeddings of the prompts that this run will still use. */
  async #encodeAll(): Promise<void> {
    const { config } = this.#parts;
    const left = (config.iterations - this.#state.iteration) * config.promptsPerIteration;
    const ahead = left > 0 ? this.#orderFrom(this.#order.position).take(left) : [];
    const wanted = [...this.#evaluationPrompts, ...ahead.map((number) => this.#prompts[number]!)];
    const recorder = await this.#options.recorder?.begin();
    if (recorder) {
      await recorder.stage("encode"); // one prompt tells all that a comparison needs
      await this.#embeddings.prepare(ahead.slice(0, 1).map((number) => this.#prompts[number]!));
      await recorder.end();
    }
    await this.#embeddings.prepare(wanted, this.#options.signal, (done, all) => {
      this.#progress("encode", done, all);
      this.#giveUpIfStopped();
    });
  }

  #orderFrom(position: PromptPosition): PromptOrder {
    const { seed, compat } = this.#parts.config;
    return new PromptOrder(this.#prompts.length, seed, {
      sameOrderEveryEpoch: compat.sameOrderEveryEpoch,
      position,
    });
  }

  #progress(stage: keyof StageSeconds, done: number, all: number): void {
    this.#options.onProgress?.({ stage, iteration: this.#state.iteration + 1, done, all });
  }

  #plan(): SamplePlan {
    const { config, pipeline } = this.#parts;
    const { window } = config.sampling;
    return samplePlan(pipeline, {
      ...config.sampling,
      ...timesteps(this.#parts),
      window: window && windowAt(window, config.sampling.steps, this.#state.iteration, BigInt(config.seed)),
    });
  }

  async #iteration(): Promise<IterationMetrics | undefined> {
    const { config, pipeline } = this.#parts;
    const started = performance.now();
    const seconds = noSeconds();
    const plan = this.#plan();
    const prompts = this.#order.take(config.promptsPerIteration).map((number) => this.#prompts[number]!);
    this.#recorder = await this.#options.recorder?.iteration(this.#state.iteration);
    const uploaded = await this.#upload(prompts);
    let sampled: Rollout | undefined;
    pipeline.device.handle.resetPeakMemory();
    try {
      sampled = await this.#rollout(plan, prompts, uploaded, seconds);
      const given = await this.#score(sampled, seconds);
      const groups = sampled.samples.map((sample) => sample.group);
      const scores = fillMissing(given, groups);
      const judged = mixedAdvantages(scores, groups, config.learning);
      await this.#recordScores(given, judged.values);
      const learned = await this.#learn(plan, sampled, judged.values, seconds);
      await this.#recorder?.end();
      this.#state.iteration++;
      this.#state.updates += learned.updates;
      this.#state.skippedUpdates += learned.skipped;
      this.#state.prompts = this.#order.position;
      this.#state.seconds += (performance.now() - started) / 1000;
      const saving = performance.now();
      await this.#writer.flush();
      seconds.save += (performance.now() - saving) / 1000;
      const metrics = iterationMetrics(this.#parts, {
        iteration: this.#state.iteration,
        plan,
        scores,
        rewardFailures: missingScores(given),
        judged,
        learned,
        seconds,
        textTokens: this.#textTokens,
        pictures: this.#lookAtPictures(),
        total: (performance.now() - started) / 1000,
      });
      await this.#metrics.write(metrics);
      await this.#afterIteration();
      return metrics;
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
      return undefined;
    } finally {
      sampled?.[Symbol.dispose]();
      for (const embedding of uploaded) embedding[Symbol.dispose]();
    }
  }

  async #upload(prompts: string[]): Promise<PromptEmbedding[]> {
    const uploaded: PromptEmbedding[] = [];
    for (const prompt of prompts) uploaded.push(await this.#embeddings.upload(prompt, this.#options.signal));
    this.#textTokens = uploaded[0]!.text.shape[1]!;
    await this.#recorder?.stage("prompts");
    for (const [i, { text, pooled }] of uploaded.entries()) {
      await this.#recorder?.tensor("text", "input", text, i);
      await this.#recorder?.tensor("pooled", "input", pooled, i);
    }
    return uploaded;
  }

  async #recordScores(given: RewardScores[], advantages: number[]): Promise<void> {
    await this.#recorder?.stage("reward");
    for (const { name, scores } of given) this.#recorder?.numbers(name, scores);
    await this.#recorder?.stage("advantage");
    this.#recorder?.numbers("advantages", advantages);
  }

  async #rollout(
    plan: SamplePlan,
    prompts: string[],
    uploaded: PromptEmbedding[],
    seconds: StageSeconds,
  ): Promise<Rollout> {
    const { config, pipeline } = this.#parts;
    const all = prompts.length * config.groupSize;
    this.#progress("rollout", 0, all);
    const result = await rollout(
      pipeline,
      plan,
      prompts.map((prompt, i) => ({ prompt, embedding: uploaded[i]! })),
      {
        seed: BigInt(config.seed),
        iteration: this.#state.iteration,
        groupSize: config.groupSize,
        batch: config.sampling.batch,
        sameNoise: config.sampling.sameNoise,
        noiseSharedAcrossPrompts: config.compat.noiseSharedAcrossPrompts,
        signal: this.#options.signal,
        recorder: this.#recorder,
        onBatch: (done) => {
          this.#progress("rollout", done, all);
          this.#giveUpIfStopped();
        },
      },
    );
    seconds.rollout += result.seconds.rollout;
    seconds.decode += result.seconds.decode;
    return result.rollout;
  }

  #giveUpIfStopped(): void {
    if (this.#options.stop?.aborted) throw new Stopped();
  }

  /** Scores all pictures; those to be kept are handed to the writer first, so that they are encoded while scoring goes on. */
  async #score(sampled: Rollout, seconds: StageSeconds): Promise<RewardScores[]> {
    const { config, pipeline, rewards } = this.#parts;
    const started = performance.now();
    const keep =
      config.output.picturesEvery > 0 && (this.#state.iteration + 1) % config.output.picturesEvery === 0;
    const folder = picturesFolder(config.output.folder, this.#state.iteration + 1);
    let scores: RewardScores[] = [];
    for (const [batch, { images, samples }] of [...sampled.imageBatches()].entries()) {
      await this.#recorder?.stage("reward", batch);
      const prompts = samples.map((sample) => sample.prompt);
      const request = scoreRequest(
        pipeline.device.handle,
        images,
        prompts,
        this.#state.iteration,
        this.#options.signal,
      );
      if (this.#pictureWatch) this.#pictureWatch.add(await request.pictures());
      if (keep) {
        const pictures = await request.pictures();
        for (const [i, { group, index }] of samples.entries()) {
          await this.#writer.write(join(folder, `${pad(group)}-${pad(index)}.png`), pictures[i]!);
        }
      }
      scores = appendScores(scores, await scoreAll(rewards, request));
      this.#giveUpIfStopped();
    }
    seconds.score += (performance.now() - started) / 1000;
    this.#warn(scores);
    return scores;
  }

  #lookAtPictures(): PictureReport | undefined {
    const report = this.#pictureWatch?.report();
    for (const warning of report?.warnings ?? []) this.#options.onWarning?.(`pictures: ${warning}`);
    return report;
  }

  #warn(scores: RewardScores[]): void {
    for (const message of new Set(scores.flatMap((entry) => entry.failures)))
      this.#options.onWarning?.(message);
  }

  async #learn(
    plan: SamplePlan,
    sampled: Rollout,
    values: number[],
    seconds: StageSeconds,
  ): Promise<UpdateReport> {
    const { config, pipeline } = this.#parts;
    const started = performance.now();
    const report = await update(pipeline, this.#policy.optimizer, sampled.samples, values, {
      learning: config.learning,
      plan,
      seed: BigInt(config.seed),
      iteration: this.#state.iteration,
      recomputeBlocks: this.#recomputeBlocks(plan),
      learningRate: (done) => learningRateAt(config, done),
      updatesDone: this.#state.updates,
      signal: this.#options.signal,
      recorder: this.#recorder,
      onMicrobatch: (done, all) => this.#progress("update", done, all),
    });
    seconds.update += (performance.now() - started) / 1000;
    return report;
  }

  #recomputeBlocks(plan: SamplePlan): number {
    const { config, pipeline } = this.#parts;
    const { recompute, microbatch } = config.learning;
    if (recompute === "none") return 0;
    if (recompute === "all") return -1;
    if (recompute !== "auto") return recompute;
    const tokens = plan.grid.rows * plan.grid.columns + this.#textTokens;
    const { held, used } = pipeline.device.memory();
    return blocksToRecompute(pipeline.config, tokens, microbatch, freemem() + held - used);
  }

  async #afterIteration(): Promise<void> {
    const { config } = this.#parts;
    const { iteration } = this.#state;
    const due = (every: number) => every > 0 && iteration % every === 0;
    if (due(config.evaluation.every) || (config.evaluation.every > 0 && iteration === config.iterations))
      await this.#evaluate();
    if (due(config.output.checkpointEvery)) await this.#checkpoint();
  }

  async #evaluate(): Promise<void> {
    const { config, pipeline, evaluationRewards } = this.#parts;
    if (this.#evaluationPrompts.length === 0) return;
    const started = performance.now();
    const { evaluation, sampling } = config;
    const plan = samplePlan(pipeline, {
      ...sampling,
      ...timesteps(this.#parts),
      steps: evaluation.steps,
      kind: evaluation.kind,
      window: undefined,
    });
    const { iteration } = this.#state;
    const result = await this.#policy.withAverage(() =>
      evaluate(pipeline, plan, this.#embeddings, evaluationRewards, {
        ...evaluation,
        prompts: this.#evaluationPrompts,
        seed: BigInt(config.seed),
        iteration,
        folder: evaluationFolder(config.output.folder, iteration),
        signal: this.#options.signal,
        onBatch: (done, all) => {
          this.#progress("evaluate", done, all);
          // Later ones are finished: an iteration and its evaluation belong together.
          if (iteration === 0) this.#giveUpIfStopped();
        },
      }),
    );
    this.#warn(result.scores);
    const metrics = {
      type: "evaluation" as const,
      iteration,
      pictures: result.pictures,
      rewards: Object.fromEntries(
        result.scores.map(({ name, scores }) => [name, spread(scores.filter(Number.isFinite))]),
      ),
      seconds: (performance.now() - started) / 1000,
    };
    await this.#metrics.write(metrics);
    this.#options.onEvaluation?.(metrics, result);
  }

  async #checkpoint(): Promise<void> {
    const { output } = this.#parts.config;
    if (this.#saved === this.#state.iteration) return;
    this.#state.metricsBytes = await this.#metrics.sync();
    this.#progress("save", 0, 1);
    await saveCheckpoint(output.folder, this.#state, this.#policy.optimizer, output.keep);
    this.#saved = this.#state.iteration;
  }

  /** The trained weights, and the numbers before and after. */
  async #finish(): Promise<void> {
    const { folder } = this.#parts.config.output;
    await rm(join(folder, "final"), { recursive: true, force: true });
    await this.#policy.export(join(folder, "final"));
    await writeFile(join(folder, "done"), `${this.#state.iteration}\n`);
  }
}

const pad = (number: number) => String(number).padStart(3, "0");

const timesteps = ({ config }: TrainerParts) => ({
  integerTimesteps: config.compat.integerTimesteps,
  bf16Timesteps: config.compat.bf16Timesteps,
});

const promptsOf = async (source: string | string[]): Promise<string[]> =>
  (await loadPrompts(source)).map((prompt) => prompt.text);
