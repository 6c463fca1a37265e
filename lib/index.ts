/**
 * Fine-tuning FLUX text-to-image models with DanceGRPO, on CPUs, CUDA and Ascend.
 *
 *     using device = openDevice("cpu");
 *     using pipeline = await loadPipeline("models/tiny-shapes", { device });
 *     using reward = await loadReward({ type: "clip", path: "models/tiny-shapes/reward" }, { device });
 *     const trainer = new GrpoTrainer({ pipeline, reward, prompts: "prompts.txt", ...preset("tiny-shapes") });
 *     for await (const step of trainer.run()) console.log(step.reward.mean, step.ratio.mean);
 */

export { Device, openDevice } from "./device.js";
export { type CompareOptions, compareConfigs } from "./distributed/compare.js";
export { type GroupOptions, initGroup } from "./distributed/group.js";
export { type LaunchEvent, type LaunchOptions, type LaunchResult, launch } from "./distributed/launch.js";
export type { CollectiveOptions, CpuCollectiveOptions, HcclRdmaOptions } from "./distributed/options.js";
export type { Group } from "./distributed/types.js";
export { DanceError, type DanceErrorOptions } from "./errors.js";
export type {
  CompatConfig,
  DistributedConfig,
  EvaluationConfig,
  LearningConfig,
  LoraConfig,
  ModelConfig,
  OutputConfig,
  PartialConfig,
  SamplingConfig,
  TrainConfig,
  WindowConfig,
} from "./grpo/config.js";
export { defaults } from "./grpo/config.js";
export type { EvaluationResult, SavedPicture } from "./grpo/evaluation.js";
export { memoryInputs, type PlanOptions } from "./grpo/memory_inputs.js";
export {
  type MemoryInputs,
  type MemoryPlan,
  planMemory,
  type Sharding,
  type Suggestion,
  suggestions,
} from "./grpo/memory_plan.js";
export type {
  EvaluationMetrics,
  IterationMetrics,
  MetricsLine,
  Spread,
  StageSeconds,
} from "./grpo/metrics.js";
export { PRESETS, preset } from "./grpo/presets.js";
export { loadPrompts, type Prompt } from "./grpo/prompts.js";
export {
  GrpoTrainer,
  type Progress,
  type RunOptions,
  type TrainerOptions,
  type TrainerParts,
} from "./grpo/trainer.js";
export { completeConfig } from "./grpo/validate.js";
export { toDevice, toPictures } from "./image/from_device.js";
export {
  createPicture,
  encodePng,
  type Picture,
  pictureGrid,
  psnr,
  readPicture,
  ssim,
} from "./image/index.js";
export { loadConfig } from "./load_config.js";
export { loadLora, saveLora } from "./models/lora.js";
export { type LoadOptions, loadPipeline } from "./models/pipeline.js";
export { saveFlux } from "./models/save.js";
export type { FluxConfig, Pipeline, PromptEmbedding, SchedulerConfig, WeightDType } from "./models/types.js";
export { type BackendReport, type MemoryReport, type NativeTensor, runJob } from "./native.js";
export type { CpuOptions, Determinism, DeviceOptions, HcclOptions, NcclOptions } from "./options.js";
export { reportHtml, writeReport } from "./report/index.js";
export { type Run, readRun } from "./report/run.js";
export { summarize, type TrainSummary } from "./report/summary.js";
export {
  functionReward,
  type LoadRewardOptions,
  loadReward,
  REWARD_TYPES,
  type Reward,
  type RewardConfig,
  type ScoreContext,
  type ScoreFunction,
  type ScoreRequest,
  type WeightedReward,
} from "./rewards/index.js";
export { type GeneratedPicture, type GenerateOptions, generate } from "./sample/generate.js";
export { ClipTokenizer, loadTokenizer, SimpleTokenizer, T5Tokenizer, type Tokenizer } from "./text/index.js";
export { type TrainResult, type TrainRunOptions, trainFromConfig } from "./train.js";
export { version } from "./version.js";
