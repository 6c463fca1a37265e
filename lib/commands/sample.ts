/** `danceflux sample MODEL`: pictures for prompts. */
import { join, resolve } from "node:path";
import type { Command } from "commander";
import { DanceError } from "../errors.js";
import { loadPrompts } from "../grpo/prompts.js";
import { AsyncImageWriter } from "../image/index.js";
import { loadLora } from "../models/lora.js";
import { loadPipeline } from "../models/pipeline.js";
import type { StepKind } from "../native.js";
import { type GenerateOptions, generate } from "../sample/generate.js";
import { type CommandContext, decimal, wholeNumber } from "./context.js";
import {
  addDeviceOptions,
  type DeviceFlags,
  loadOptions,
  type ModelSource,
  modelSource,
  openNamed,
} from "./models.js";
import type { Output } from "./output.js";
import { PieceClock } from "./pace.js";

const SUMMARY = "Draw pictures for prompts";
const MORE = `
MODEL is a FLUX pipeline's folder, or the folder of a finished run: then its base model with what it learned, and its
size, steps and schedule are the defaults.

Examples:
  danceflux sample models/tiny-shapes --prompt "two red circles on a gray background" --size 64x64 --out circles.png
  danceflux sample runs/demo --prompts models/tiny-shapes/prompts-heldout.txt --out pictures
  danceflux sample FLUX.1-dev --lora pytorch_lora_weights.safetensors --prompt "a fox in snow" --seed 3 --count 4`;

interface SampleFlags extends DeviceFlags {
  prompt?: string[];
  prompts?: string;
  out: string;
  size?: { width: number; height: number };
  steps?: number;
  guidance?: number;
  shift?: number | "dynamic";
  kind: StepKind;
  eta?: number;
  seed: number;
  count: number;
  batch: number;
  lora?: string;
  transformer?: string;
}

function parseSize(text: string): { width: number; height: number } {
  const [, width, height] = /^(\d+)x(\d+)$/.exec(text) ?? [];
  if (width && height) return { width: Number(width), height: Number(height) };
  throw new DanceError(
    "ERR_USAGE",
    `--size: expected WIDTHxHEIGHT such as 1024x768, got ${JSON.stringify(text)}`,
  );
}

const KINDS: readonly string[] = ["ode", "dance-sde", "flow-sde", "cps"];

function parseKind(text: string): string {
  if (KINDS.includes(text)) return text;
  throw new DanceError(
    "ERR_USAGE",
    `--kind: expected one of ${KINDS.join(", ")}, got ${JSON.stringify(text)}`,
  );
}

/** Prompts of the command line, then those of the file. */
export async function promptsOf({
  prompt = [],
  prompts,
}: {
  prompt?: string[];
  prompts?: string;
}): Promise<string[]> {
  const all = [
    ...prompt,
    ...(prompts === undefined ? [] : (await loadPrompts(prompts)).map(({ text }) => text)),
  ];
  if (all.length > 0) return all;
  throw new DanceError("ERR_USAGE", "expected a prompt, got none", {
    hint: "use --prompt TEXT or --prompts FILE",
  });
}

function planOf(flags: SampleFlags, { config }: ModelSource): Omit<GenerateOptions, "prompts"> {
  const { width, height } = flags.size ?? config?.sampling ?? { width: 1024, height: 1024 };
  const shift = flags.shift ?? config?.sampling.shift;
  const eta = flags.eta ?? config?.sampling.eta;
  return {
    width,
    height,
    steps: flags.steps ?? config?.evaluation.steps ?? 28,
    guidance: flags.guidance ?? config?.sampling.guidance ?? 3.5,
    ...(shift === undefined ? {} : { shift }),
    ...(eta === undefined ? {} : { eta }),
    kind: flags.kind,
    seed: flags.seed,
    picturesPerPrompt: flags.count,
    batch: flags.batch,
    integerTimesteps: config?.compat.integerTimesteps ?? false,
    bf16Timesteps: config?.compat.bf16Timesteps ?? false,
  };
}

/** One picture may be named; several get numbers in a folder. */
function pathOf(out: string, index: number, all: number): string {
  const named = /\.png$/i.test(out);
  if (named && all > 1) {
    throw new DanceError("ERR_USAGE", `--out: expected a folder for ${all} pictures, got ${out}`);
  }
  return named ? resolve(out) : resolve(join(out, `${String(index).padStart(4, "0")}.png`));
}

async function sample(model: string, flags: SampleFlags, output: Output): Promise<void> {
  const prompts = await promptsOf(flags);
  const all = prompts.length * flags.count;
  pathOf(flags.out, 0, all);
  const source = await modelSource(model);
  using device = openNamed(flags);
  const transformer = flags.transformer ?? source.transformer;
  using pipeline = await loadPipeline(source.folder, {
    ...loadOptions(device, flags, (what) => output.progress.update(`loading ${what}`)),
    ...(transformer ? { transformer } : {}),
  });
  const lora = flags.lora ?? source.lora;
  if (lora) await loadLora(pipeline.transformer, pipeline.config, lora);
  const writer = new AsyncImageWriter();
  const written: { file: string; prompt: string; sample: number }[] = [];
  const clock = new PieceClock("drawing", all, flags.batch);
  output.progress.update(clock.line(0));
  for await (const { picture, ...entry } of generate(pipeline, { ...planOf(flags, source), prompts })) {
    const file = pathOf(flags.out, written.length, all);
    await writer.write(file, picture);
    written.push({ file, ...entry });
    output.progress.update(clock.line(written.length));
  }
  await writer.flush();
  output.result({ pictures: written }, written.map(({ file, prompt }) => `${file}  ${prompt}`).join("\n"));
}

export function addSample(program: Command, context: CommandContext): void {
  const command = program.command("sample").summary(SUMMARY).description(SUMMARY);
  command
    .argument("<model>", "folder of a FLUX pipeline, or of a finished run")
    .option("--prompt <text>", "what to draw, any number of times", context.collect)
    .option("--prompts <file>", "prompts of a .txt or .jsonl file")
    .option("--out <path>", "a folder, or a .png file for a single picture", "pictures")
    .option("--size <WxH>", "pixels (default 1024x1024)", parseSize)
    .option("--steps <number>", "from noise to picture (default 28)", wholeNumber("--steps", 1))
    .option("--guidance <number>", "distilled guidance (default 3.5)", decimal("--guidance"))
    .option("--shift <number>", "of the noise schedule, or dynamic (default: the model's)", (text) =>
      text === "dynamic" ? text : decimal("--shift")(text),
    )
    .option("--kind <kind>", `steps: ${KINDS.join(", ")}`, parseKind, "ode")
    .option("--eta <number>", "noise per step, for kinds other than ode (default 0.3)", decimal("--eta"))
    .option("--seed <number>", "the same seed draws the same pictures", wholeNumber("--seed", 0), 0)
    .option("--count <number>", "pictures per prompt", wholeNumber("--count", 1), 1)
    .option("--batch <number>", "pictures at a time; changes the speed alone", wholeNumber("--batch", 1), 1)
    .option("--lora <file>", "adapter to add, in the PEFT or kohya layout")
    .option("--transformer <folder>", "another transformer in the diffusers layout");
  addDeviceOptions(command)
    .option("--json", "list the pictures as one JSON object on stdout")
    .addHelpText("after", MORE)
    .action(
      context.action((model: string, flags: SampleFlags, output: Output) => sample(model, flags, output)),
    );
}
