/** `danceflux score PICTURE...`: what rewards say about pictures. */
import { resolve } from "node:path";
import type { Command } from "commander";
import type { Device } from "../device.js";
import { DanceError } from "../errors.js";
import type { RewardConfig } from "../grpo/config.js";
import { toDevice } from "../image/from_device.js";
import { type Picture, readPicture } from "../image/index.js";
import { loadConfig } from "../load_config.js";
import { shortNumber } from "../report/html.js";
import { checkRewards, loadRewards, REWARD_TYPES } from "../rewards/index.js";
import { scoreAll, scoreRequest, type WeightedReward } from "../rewards/scorer.js";
import type { CommandContext } from "./context.js";
import { addDeviceOptions, type DeviceFlags, openNamed } from "./models.js";
import type { Output } from "./output.js";
import { PieceClock } from "./pace.js";
import { promptsOf } from "./sample.js";

const SUMMARY = "Score pictures for prompts by rewards";
const MORE = `
One prompt counts for all pictures; otherwise there is one per picture, in order. A reward is TYPE=PATH, TYPE alone (its
model lies here under its published name), or a JSON object as in a configuration. Types: ${REWARD_TYPES.join(", ")}.

Examples:
  danceflux score a.png b.png --prompt "a fox in snow" --reward hps-v2.1=HPS_v2.1_compressed.pt --tokenizer FLUX.1-dev
  danceflux score red.png --prompt "one red circle on a white background" --reward clip=models/tiny-shapes/reward
  danceflux score pictures/*.png --prompts prompts.txt --config models/tiny-shapes/demo.json --json`;

interface ScoreFlags extends DeviceFlags {
  prompt?: string[];
  prompts?: string;
  reward?: string[];
  config?: string;
  tokenizer?: string;
}

/** `clip`, `clip=folder` or `{"type": "clip", ...}`. */
function parseReward(text: string): RewardConfig {
  if (text.startsWith("{")) {
    try {
      return JSON.parse(text) as RewardConfig;
    } catch (cause) {
      throw new DanceError(
        "ERR_USAGE",
        `--reward: expected JSON, got ${text} (${(cause as Error).message})`,
        { cause },
      );
    }
  }
  const [, type, path] = /^([^=]+)(?:=(.+))?$/s.exec(text) ?? [];
  if (type === undefined)
    throw new DanceError("ERR_USAGE", `--reward: expected TYPE=PATH, got ${JSON.stringify(text)}`);
  return path === undefined ? { type } : { type, path };
}

/** Rewards of the command line and of the configuration, with the folder that the configuration's model is in. */
async function rewardConfigs(
  flags: ScoreFlags,
): Promise<{ configs: RewardConfig[]; vocabularies: string[] }> {
  const own = (flags.reward ?? []).map(parseReward);
  const vocabularies = flags.tokenizer === undefined ? [] : [resolve(flags.tokenizer)];
  const file = flags.config === undefined ? undefined : await loadConfig(flags.config);
  if (file) vocabularies.push(file.model.path);
  const configs = [...own, ...(file ? (file.evaluation.rewards ?? file.rewards) : [])];
  if (configs.length === 0) {
    throw new DanceError("ERR_USAGE", "expected a reward, got none", {
      hint: "use --reward TYPE=PATH or --config FILE",
    });
  }
  checkRewards("--reward", configs);
  return { configs, vocabularies };
}

export interface ScoredPicture {
  picture: string;
  prompt: string;
  scores: Record<string, number>;
}

async function scorePicture(
  device: Device,
  rewards: WeightedReward[],
  picture: Picture,
  prompt: string,
): Promise<Record<string, number>> {
  using images = await toDevice(device.handle, [picture]);
  const all = await scoreAll(rewards, scoreRequest(device.handle, images, [prompt], 0));
  return Object.fromEntries(all.map(({ name, scores }) => [name, scores[0]!]));
}

function table(scored: ScoredPicture[]): string {
  const names = Object.keys(scored[0]!.scores);
  const head = [...names, "picture"];
  const rows = scored.map(({ picture, scores }) => [
    ...names.map((name) => shortNumber(scores[name]!)),
    picture,
  ]);
  const widths = head.map((_, i) => Math.max(...[head, ...rows].map((row) => row[i]!.length)));
  return [head, ...rows]
    .map((row) => row.map((cell, i) => (i < names.length ? cell.padStart(widths[i]!) : cell)).join("  "))
    .join("\n");
}

async function score(pictures: string[], flags: ScoreFlags, output: Output): Promise<void> {
  const prompts = await promptsOf(flags);
  if (prompts.length !== 1 && prompts.length !== pictures.length) {
    throw new DanceError(
      "ERR_USAGE",
      `expected one prompt or ${pictures.length}, one per picture, got ${prompts.length}`,
    );
  }
  const { configs, vocabularies } = await rewardConfigs(flags);
  using device = openNamed(flags);
  output.progress.update("loading rewards");
  const dtype = flags.dtype ? { dtype: flags.dtype } : {};
  const isModel = ({ type }: RewardConfig) => !["http", "module"].includes(type);
  using loaded = await loadRewards(
    configs.map((config) => (isModel(config) ? { ...dtype, ...config } : config)),
    { device, vocabularies },
  );
  const scored: ScoredPicture[] = [];
  const clock = new PieceClock("scoring", pictures.length);
  output.progress.update(clock.line(0));
  for (const [i, path] of pictures.entries()) {
    const prompt = prompts.length === 1 ? prompts[0]! : prompts[i]!;
    const scores = await scorePicture(device, loaded.rewards, await readPicture(path), prompt);
    scored.push({ picture: path, prompt, scores });
    output.progress.update(clock.line(scored.length));
  }
  output.result({ pictures: scored }, table(scored));
}

export function addScore(program: Command, context: CommandContext): void {
  const command = program.command("score").summary(SUMMARY).description(SUMMARY);
  command
    .argument("<pictures...>", "PNG files; JPEG and WebP with the package sharp")
    .option("--prompt <text>", "for all pictures, or once per picture", context.collect)
    .option("--prompts <file>", "prompts of a .txt or .jsonl file, one per picture")
    .option("--reward <type=path>", "what scores, any number of times", context.collect)
    .option("--config <file>", "score by the (evaluation) rewards of a training configuration")
    .option(
      "--tokenizer <folder>",
      "a CLIP vocabulary, or a FLUX pipeline with one, for rewards that bring none",
    );
  addDeviceOptions(command)
    .option("--json", "tell the scores as one JSON object on stdout")
    .addHelpText("after", MORE)
    .action(
      context.action((pictures: string[], flags: ScoreFlags, output: Output) =>
        score(pictures, flags, output),
      ),
    );
}
