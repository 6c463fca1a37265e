/** One run of the trainer: rollout, score, advantages, update; evaluation, metrics and checkpoints around it. */
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { AsyncImageWriter } from "../image/index.js";
import {
  appendScores,
  fillMissing,
  missingScores,
  type RewardScores,
  scoreAll,
  scoreRequest,
} from "../rewards/scorer.js";
import { promptKey, type SamplePlan, samplePlan } from "../sample/sampler.js";
import { mixedAdvantages } from "./advantage.js";
import { saveCheckpoint, type TrainerState } from "./checkpoint.js";
import type { Share } from "./deal.js";
import type { EmbeddingStore } from "./embeddings.js";
import { evaluate, writePictureList } from "./evaluation.js";
import { learningRateAt } from "./learning_rate.js";
import { passShape } from "./memory_plan.js";
import { type IterationMetrics, type MetricsFile, noSeconds, type StageSeconds, spread } from "./metrics.js";
import { lastIteration, type Opened, openTraining, promptOrder, timesteps } from "./opening.js";
import { type PictureReport, PictureWatch, type SeenPictures } from "./picture_watch.js";
import type { Policy } from "./policy.js";
import type { PromptOrder } from "./prompts.js";
import { freeForActivations, recomputedBlocks } from "./recompute.js";
import type { StageRecorder } from "./recorder.js";
import { iterationMetrics } from "./report_iteration.js";
import { type IterationPrompt, type Rollout, rollout } from "./rollout.js";
import { evaluationFolder, picturesFolder } from "./run_folder.js";
import type { RunLock } from "./run_lock.js";
import type { Team } from "./team.js";
import { groupsOf, packReport, Together } from "./together.js";
import type { RunOptions, TrainerParts } from "./trainer.js";
import { type UpdateReport, update } from "./update.js";
import { windowAt } from "./window.js";

/** Thrown inside to give up a rollout; never leaves this file. */
class Stopped extends Error {}

export class Session {
  readonly #parts: TrainerParts;
  readonly #options: RunOptions;
  readonly #team: Team;
  readonly #signal: AbortSignal | undefined;
  readonly #share: Share;
  readonly #together: Together;
  readonly #policy: Policy;
  readonly #embeddings: EmbeddingStore;
  readonly #prompts: string[];
  readonly #order: PromptOrder;
  readonly #evaluationPrompts: string[];
  readonly #metrics: MetricsFile | undefined;
  readonly #writer = new AsyncImageWriter();
  readonly #state: TrainerState;
  readonly #lock: RunLock | undefined;
  #saved: number;
  #textTokens = 0;
  /** What encoding the prompts took: told once, with the first iteration. */
  #encodeSeconds: number;
  #checkpointSeconds = 0;
  /** Some rank was asked to stop, and all know it. */
  #stopping = false;
  #pictureWatch: PictureWatch | undefined;
  /** Of the iteration under way. */
  #recorder: StageRecorder | undefined;

  private constructor(parts: TrainerParts, options: RunOptions, team: Team, opened: Opened) {
    this.#parts = parts;
    this.#options = options;
    this.#team = team;
    this.#signal = team.signal(options.signal);
    this.#share = opened.share;
    this.#together = new Together(team, parts.config);
    this.#policy = opened.policy;
    this.#embeddings = opened.embeddings;
    this.#prompts = opened.prompts;
    this.#order = promptOrder(parts.config, opened.prompts.length, opened.state.prompts);
    this.#evaluationPrompts = opened.evaluationPrompts;
    this.#metrics = opened.metrics;
    this.#state = opened.state;
    this.#lock = opened.lock;
    this.#saved = opened.state.iteration;
    this.#encodeSeconds = opened.encodeSeconds;
    if (parts.config.output.pictureCheck)
      this.#pictureWatch = new PictureWatch(parts.pipeline.vaeFactor * 2, opened.state.pictures);
  }

  /** All ranks call it. `undefined`: one was asked to stop before anything was learned. */
  static async open(parts: TrainerParts, options: RunOptions, team: Team): Promise<Session | undefined> {
    const opened = await openTraining(parts, options, team);
    return opened && new Session(parts, options, team, opened);
  }

  async close(): Promise<void> {
    await this.#writer.flush().catch(() => {});
    try {
      await this.#metrics?.close();
    } finally {
      this.#policy[Symbol.dispose]();
      await this.#lock?.release();
    }
  }

  async *iterations(): AsyncGenerator<IterationMetrics> {
    const { config } = this.#parts;
    try {
      if (this.#state.iteration === 0) await this.#evaluate();
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
      return; // nothing was learned yet that could be lost
    }
    while (this.#state.iteration < this.#last && !this.#stopping) {
      const metrics = await this.#iteration();
      if (!metrics) break; // asked to stop in the middle of a rollout
      yield metrics;
    }
    if (this.#last < config.iterations && !this.#stopping) return; // a look at its beginning keeps nothing
    await this.#checkpoint();
    if (this.#state.iteration >= config.iterations) await this.#finish();
  }

  /** The iteration to end after. */
  get #last(): number {
    return lastIteration(this.#parts.config, this.#options);
  }

  /** Was this rank asked to stop? Only what all ranks agreed on may end a stage that they share. */
  get #asked(): boolean {
    return this.#options.stop?.aborted === true;
  }

  /** Lets this rank give up its part of a stage; what all ranks then agree on ends the stage. */
  async #untilStopped<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
      return undefined;
    }
  }

  #stopAll(): never {
    this.#stopping = true;
    throw new Stopped();
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
    // what was done since the line before
    const before = this.#encodeSeconds + this.#checkpointSeconds;
    seconds.encode = this.#encodeSeconds;
    seconds.save = this.#checkpointSeconds;
    const plan = this.#plan();
    const numbers = this.#order.take(config.promptsPerIteration);
    const uploaded = new Map<number, IterationPrompt>();
    this.#recorder = await this.#options.recorder?.iteration(this.#state.iteration);
    let sampled: Rollout | undefined;
    pipeline.device.handle.resetPeakMemory();
    try {
      await this.#upload(numbers, uploaded);
      const given = await this.#untilStopped(async () => {
        sampled = await this.#rollout(plan, uploaded, seconds);
        return this.#score(sampled, seconds);
      });
      const all = await this.#together.scores(this.#state.iteration + 1, given, this.#asked);
      if (!all) this.#stopAll();
      const groups = Array.from({ length: config.promptsPerIteration * config.groupSize }, (_, place) =>
        Math.floor(place / config.groupSize),
      );
      const scores = fillMissing(all, groups);
      const judged = mixedAdvantages(scores, groups, config.learning);
      const values = this.#share.pictures.map(({ place }) => judged.values[place]!);
      await this.#recordScores(all, judged.values);
      const own = await this.#learn(plan, sampled!, values, seconds);
      await this.#recorder?.end();
      await this.#finishSaving(seconds);
      seconds.communicate += own.communication.secondsWaited;
      const device = pipeline.device.memory();
      const seen = this.#pictureWatch?.seen();
      const part = packReport(own, {
        stop: this.#asked,
        seconds,
        device,
        ...(seen ? { pictures: seen } : {}),
      });
      const joined = await this.#together.report(this.#state.iteration + 1, own, part);
      this.#stopping ||= joined.stop;
      const { learned } = joined;
      this.#state.iteration++;
      this.#state.updates += learned.updates;
      this.#state.skippedUpdates += learned.skipped;
      this.#state.prompts = this.#order.position;
      const total = before + (performance.now() - started) / 1000;
      this.#encodeSeconds = 0;
      this.#checkpointSeconds = 0;
      this.#state.seconds += total;
      const metrics = iterationMetrics(this.#parts, {
        ...joined,
        iteration: this.#state.iteration,
        plan,
        scores,
        rewardFailures: missingScores(all),
        judged,
        textTokens: this.#textTokens,
        pictures: this.#lookAtPictures(joined.pictures),
        total,
        ranks: this.#team.size,
      });
      await this.#metrics?.write(metrics);
      await this.#afterIteration();
      return metrics;
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
      return undefined;
    } finally {
      sampled?.[Symbol.dispose]();
      for (const { embedding } of uploaded.values()) embedding[Symbol.dispose]();
    }
  }

  async #upload(numbers: number[], uploaded: Map<number, IterationPrompt>): Promise<void> {
    for (const group of groupsOf(this.#share)) {
      const prompt = this.#prompts[numbers[group]!]!;
      uploaded.set(group, { prompt, embedding: await this.#embeddings.upload(prompt, this.#signal) });
    }
    this.#textTokens = [...uploaded.values()][0]!.embedding.text.shape[1]!;
    await this.#recorder?.stage("prompts");
    for (const [group, { embedding }] of uploaded) {
      await this.#recorder?.tensor("text", "input", embedding.text, [group]);
      await this.#recorder?.tensor("pooled", "input", embedding.pooled, [group]);
      // Which prompt it is, as noise keys know it.
      this.#recorder?.numbers(`key.${group}`, [promptKey(this.#prompts[numbers[group]!]!)]);
    }
  }

  async #recordScores(given: RewardScores[], advantages: number[]): Promise<void> {
    await this.#recorder?.stage("reward");
    for (const { name, scores } of given) this.#recorder?.numbers(name, scores);
    await this.#recorder?.stage("advantage");
    this.#recorder?.numbers("advantages", advantages);
  }

  async #rollout(
    plan: SamplePlan,
    prompts: ReadonlyMap<number, IterationPrompt>,
    seconds: StageSeconds,
  ): Promise<Rollout> {
    const { config, pipeline } = this.#parts;
    const { pictures } = this.#share;
    this.#giveUpIfStopped();
    this.#progress("rollout", 0, pictures.length);
    const result = await rollout(pipeline, plan, prompts, pictures, {
      seed: BigInt(config.seed),
      iteration: this.#state.iteration,
      batch: config.sampling.batch,
      sameNoise: config.sampling.sameNoise,
      noiseSharedAcrossPrompts: config.compat.noiseSharedAcrossPrompts,
      signal: this.#signal,
      recorder: this.#recorder,
      onBatch: (done) => {
        this.#progress("rollout", done, pictures.length);
        this.#giveUpIfStopped();
      },
    });
    seconds.rollout += result.seconds.rollout;
    seconds.decode += result.seconds.decode;
    return result.rollout;
  }

  #giveUpIfStopped(): void {
    if (this.#asked) throw new Stopped();
  }

  /** Scores all pictures; those to be kept are handed to the writer first, so that they are encoded while scoring goes on. */
  async #score(sampled: Rollout, seconds: StageSeconds): Promise<RewardScores[]> {
    const { config, pipeline, rewards } = this.#parts;
    const [started, saved] = [performance.now(), seconds.save];
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
        this.#signal,
      );
      if (this.#pictureWatch) this.#pictureWatch.add(await request.pictures());
      if (keep) {
        const pictures = await request.pictures();
        for (const [i, { group, index }] of samples.entries()) {
          await this.#writer.write(join(folder, `${pad(group)}-${pad(index)}.png`), pictures[i]!);
        }
        if (!config.output.saveInBackground) await this.#finishSaving(seconds);
      }
      scores = appendScores(scores, await scoreAll(rewards, request));
      this.#giveUpIfStopped();
    }
    seconds.score += (performance.now() - started) / 1000 - (seconds.save - saved);
    this.#warn(scores);
    return scores;
  }

  /** Waits until all pictures are on the disk. */
  async #finishSaving(seconds: StageSeconds): Promise<void> {
    const started = performance.now();
    await this.#writer.flush();
    seconds.save += (performance.now() - started) / 1000;
  }

  #lookAtPictures(seen: readonly SeenPictures[]): PictureReport | undefined {
    const report = this.#pictureWatch?.report(seen);
    this.#state.pictures = this.#pictureWatch?.reference;
    const told = this.#team.isFirst ? (report?.warnings ?? []) : []; // all ranks know the same
    for (const warning of told) this.#options.onWarning?.(`pictures: ${warning}`);
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
      perUpdate: this.#share.perUpdate,
      ranks: this.#team.size,
      sharded: this.#team.size > 1 && config.distributed.sharding !== "none",
      ordered: config.distributed.collective === "ordered",
      plan,
      seed: BigInt(config.seed),
      iteration: this.#state.iteration,
      recomputeBlocks: this.#recomputeBlocks(plan),
      learningRate: (done) => learningRateAt(config, done),
      updatesDone: this.#state.updates,
      signal: this.#signal,
      recorder: this.#recorder,
      onMicrobatch: (done, all) => this.#progress("update", done, all),
    });
    seconds.update += (performance.now() - started) / 1000;
    return report;
  }

  #recomputeBlocks(plan: SamplePlan): number {
    const { config, pipeline } = this.#parts;
    const { recompute, microbatch } = config.learning;
    const tokens = { imageTokens: plan.grid.rows * plan.grid.columns, textTokens: this.#textTokens };
    return recomputedBlocks(
      recompute,
      passShape(config, pipeline.config, tokens, microbatch),
      freeForActivations(pipeline.device.memory(), this.#team.localSize),
    );
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
    const folder = evaluationFolder(config.output.folder, iteration);
    const result = await this.#policy.withAverage(async () => {
      const own = await this.#untilStopped(() =>
        evaluate(pipeline, plan, this.#embeddings, evaluationRewards, {
          ...evaluation,
          prompts: this.#evaluationPrompts,
          seat: this.#team,
          seed: BigInt(config.seed),
          iteration,
          folder,
          signal: this.#signal,
          onBatch: (done, all) => {
            this.#progress("evaluate", done, all);
            // Later ones are finished: an iteration and its evaluation belong together.
            if (iteration === 0) this.#giveUpIfStopped();
          },
        }),
      );
      if (own) this.#warn(own.scores);
      return (await this.#together.evaluation(iteration, own)) ?? this.#stopAll();
    });
    if (this.#team.isFirst) await writePictureList(folder, result.saved);
    const metrics = {
      type: "evaluation" as const,
      iteration,
      pictures: result.pictures,
      rewards: Object.fromEntries(
        result.scores.map(({ name, scores }) => [name, spread(scores.filter(Number.isFinite))]),
      ),
      seconds: (performance.now() - started) / 1000,
    };
    await this.#metrics?.write(metrics);
    this.#options.onEvaluation?.(metrics, result);
  }

  async #checkpoint(): Promise<void> {
    const { output, distributed } = this.#parts.config;
    if (this.#saved === this.#state.iteration) return;
    if (this.#metrics) this.#state.metricsBytes = await this.#metrics.sync();
    this.#progress("save", 0, 1);
    const started = performance.now();
    await saveCheckpoint(output.folder, this.#state, this.#policy.optimizer, {
      keep: output.keep,
      team: this.#team,
      sharded: distributed.sharding !== "none",
    });
    this.#checkpointSeconds = (performance.now() - started) / 1000;
    this.#saved = this.#state.iteration;
  }

  /** The trained weights, and the numbers before and after. */
  async #finish(): Promise<void> {
    const { folder } = this.#parts.config.output;
    const final = join(folder, "final");
    if (this.#team.isFirst) await rm(final, { recursive: true, force: true });
    await this.#policy.export(final);
    if (this.#team.isFirst) await writeFile(join(folder, "done"), `${this.#state.iteration}\n`);
  }
}

const pad = (number: number) => String(number).padStart(3, "0");
