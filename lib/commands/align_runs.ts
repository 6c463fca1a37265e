/** `danceflux align inference | reward | train`: the acceptance runs. */
import { join } from "node:path";
import type { Command } from "commander";
import { compareDrawn, drawSide, type InferenceOptions, isDrawn, writeStepGrid } from "../align/inference.js";
import { inferencePage, rewardPage, trainingPage } from "../align/pages.js";
import { alignReward } from "../align/reward.js";
import { parseSide } from "../align/side.js";
import { alignTraining, compareRuns } from "../align/training.js";
import type { TrainConfig } from "../grpo/config.js";
import { loadConfig } from "../load_config.js";
import { writeAtomically } from "../models/save.js";
import { readRun } from "../report/run.js";
import { resultFolder, unusable } from "./align_status.js";
import { type CommandContext, wholeNumber } from "./context.js";
import type { Output } from "./output.js";

interface RunFlags {
  a: string;
  b: string;
  out: string;
  set?: string[];
  pictures?: number;
  steps?: number;
  seed?: number;
  iterations?: number;
  from?: string;
}

/** Writes the page and tells the verdict. */
async function finish(
  context: CommandContext,
  output: Output,
  folder: string,
  result: { aligned: boolean; sentence: string },
  page: string,
  more: Record<string, unknown> = {},
): Promise<void> {
  const report = join(folder, "report.html");
  await writeAtomically(report, page);
  const { aligned, sentence } = result;
  output.result({ aligned, sentence, ...more, report }, `${sentence}\nreport: ${report}`);
  if (!aligned) context.status = 1;
}

/** A side's pictures: a folder that another machine drew, or drawn now. */
async function drawn(
  config: TrainConfig,
  side: string,
  folder: string,
  options: InferenceOptions,
): Promise<string> {
  if (await isDrawn(side)) return side;
  await drawSide(config, parseSide(side), folder, options);
  return folder;
}

async function inference(
  path: string,
  flags: RunFlags,
  output: Output,
  context: CommandContext,
): Promise<void> {
  const config = await loadConfig(path, flags.set ?? []);
  const folder = await resultFolder(flags.out);
  const { pictures, steps, seed } = flags;
  const options: InferenceOptions = {
    ...(pictures === undefined ? {} : { pictures }),
    ...(steps === undefined ? {} : { steps }),
    ...(seed === undefined ? {} : { seed }),
    onProgress: (what) => output.progress.update(what),
  };
  const b = await drawn(config, flags.b, join(folder, "b"), options);
  const a = await drawn(config, flags.a, join(folder, "a"), options);
  output.progress.update("comparing");
  const result = await compareDrawn(a, b);
  const grid = await writeStepGrid(folder, result);
  const told = result.steps.map(({ step, psnr, ssim }) => ({ step, psnr, ssim }));
  await finish(context, output, folder, result, await inferencePage(result), { steps: told, grid });
}

async function reward(path: string, flags: RunFlags, output: Output, context: CommandContext): Promise<void> {
  const config = await loadConfig(path, flags.set ?? []);
  const folder = await resultFolder(flags.out);
  const { pictures, seed, from } = flags;
  const result = await alignReward(config, parseSide(flags.a), parseSide(flags.b), folder, {
    ...(pictures === undefined ? {} : { pictures }),
    ...(seed === undefined ? {} : { seed }),
    ...(from === undefined ? {} : { from }),
    onProgress: (what) => output.progress.update(what),
  });
  const rewards = result.rewards.map(({ name, mean, maxAbsolute, share, worst }) => ({
    name,
    mean,
    maxAbsolute,
    share,
    worst,
  }));
  await finish(context, output, folder, result, rewardPage(result, flags.a, flags.b), { rewards });
}

async function train(path: string, flags: RunFlags, output: Output, context: CommandContext): Promise<void> {
  const config = await loadConfig(path, flags.set ?? []);
  const folder = await resultFolder(flags.out);
  const isRun = (side: string) =>
    readRun(side).then(
      (run) => run,
      () => undefined,
    );
  const runs = [await isRun(flags.a), await isRun(flags.b)];
  const [a, b] = runs;
  const result =
    a && b
      ? await compareRuns(a, b)
      : await alignTraining(config, parseSide(flags.a), parseSide(flags.b), folder, {
          ...(flags.iterations === undefined ? {} : { iterations: flags.iterations }),
          onProgress: (what) => output.progress.update(what),
        });
  const curves = result.curves.map(({ name, share, worst }) => ({ name, share, worst }));
  await finish(context, output, folder, result, await trainingPage(result, flags.a, flags.b), { curves });
}

export function addAcceptance(align: Command, context: CommandContext): void {
  const add = (
    name: string,
    description: string,
    work: (path: string, flags: RunFlags, output: Output, context: CommandContext) => Promise<void>,
    example: string,
  ): Command =>
    align
      .command(name)
      .description(description)
      .argument("<config>", "configuration file, JSON")
      .requiredOption("--a <side>", "the side in question")
      .option("--b <side>", "the side that counts as right", "cpu")
      .requiredOption("--out <folder>", "where results and report.html go")
      .option("--set <name=value>", "change an option, any number of times", context.collect)
      .option("--json", "tell the result as one JSON object on stdout")
      .addHelpText("after", `\nExample:\n  ${example}`)
      .action(
        unusable(context, (path: string, flags: RunFlags, output: Output) =>
          work(path, flags, output, context),
        ),
      );
  add(
    "inference",
    "Every step's pictures from both sides; a side may be a folder that this command drew elsewhere",
    inference,
    "danceflux align inference train.json --a cpu,dtype=bf16 --out accepted/inference",
  )
    .option("--pictures <count>", "default 12", wholeNumber("--pictures", 1))
    .option("--steps <count>", "default the configuration's", wholeNumber("--steps", 1))
    .option("--seed <number>", "default the configuration's", wholeNumber("--seed", 0));
  add(
    "reward",
    "The same pictures scored on both sides; 0.015 % is allowed",
    reward,
    "danceflux align reward train.json --a cpu,dtype=bf16 --out accepted/reward",
  )
    .option("--pictures <count>", "default 1000", wholeNumber("--pictures", 1))
    .option("--from <folder>", "PNG files in place of drawing some")
    .option("--seed <number>", "default the configuration's", wholeNumber("--seed", 0));
  add(
    "train",
    "Both sides train; 5 % is allowed between reward and loss curves. Sides may be two finished run folders",
    train,
    "danceflux align train train.json --a cpu,dtype=bf16 --iterations 200 --out accepted/train",
  ).option("--iterations <count>", "default 200", wholeNumber("--iterations", 1));
}
