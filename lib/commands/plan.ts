/** `danceflux plan CONFIG`: the memory that a rank of a run will take, before anything is loaded. */
import { dirname, resolve } from "node:path";
import type { Command } from "commander";
import { DanceError } from "../errors.js";
import { defaults, type TrainConfig } from "../grpo/config.js";
import { checkDeal } from "../grpo/deal.js";
import { memoryInputs } from "../grpo/memory_inputs.js";
import {
  type MemoryInputs,
  type MemoryPlan,
  planMemory,
  rankShare,
  SHARDINGS,
  type Sharding,
  type Suggestion,
  suggestions,
  weightDType,
} from "../grpo/memory_plan.js";
import { configFromTree, readTree } from "../load_config.js";
import { bytes } from "../report/html.js";
import { type CommandContext, wholeNumber } from "./context.js";
import { type Output, STATUS } from "./output.js";

const SUMMARY = "Tell how much device memory a training run will take, and what to change if it does not fit";
const MORE = `
CONFIG is a training configuration, or a transformer's config.json alone, which is planned with default options. Only
configurations and headers of weight files are read; models that are not at hand are taken for the published ones. The ranks
share out promptsPerIteration x groupSize pictures. With --device-memory the exit status is 1 when it does not fit.

Examples:
  danceflux plan run.json --device-memory 64GiB
  danceflux plan run.json --world 8 --sharding optimizer+gradients --device-memory 64GiB
  danceflux plan FLUX.1-dev/transformer/config.json --world 8 --set device.name=ascend --json`;

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
  TIB: 2 ** 40,
};

/** `64GiB`, `80 GB`, `68719476736`. @throws {DanceError} `ERR_USAGE` */
export function parseBytes(name: string, text: string): number {
  const [, number, unit] = /^\s*(\d+(?:\.\d+)?)\s*([KMGT]I?B)?\s*$/i.exec(text) ?? [];
  const size = Number(number) * (UNITS[(unit ?? "").toUpperCase()] ?? Number.NaN);
  if (size >= 1) return Math.floor(size);
  throw new DanceError("ERR_USAGE", `${name}: expected a size such as 64GiB, got ${JSON.stringify(text)}`);
}

interface PlanArguments {
  world?: string;
  deviceMemory?: string;
  sharding?: string;
  modelConfig?: string;
  set?: string[];
}

/** As given, or as the configuration says; one rank has nobody to share with. */
function shardingOf(text: string | undefined, config: TrainConfig, world: number): Sharding {
  if (text === undefined) return world === 1 ? "none" : config.distributed.sharding;
  const found = SHARDINGS.find((name) => name === text);
  if (!found)
    throw new DanceError("ERR_USAGE", `--sharding: expected one of ${SHARDINGS.join(", ")}, got "${text}"`);
  if (found !== "none" && world === 1)
    throw new DanceError("ERR_USAGE", `--sharding: expected none with one rank, got "${text}"`, {
      hint: "give the number of ranks with --world",
    });
  return found;
}

/** A training configuration, or one made for a transformer's configuration. */
async function readConfig(
  path: string,
  changes: string[],
  world: number,
): Promise<{ config: TrainConfig; modelConfig?: string }> {
  const tree = await readTree(path);
  const folder = dirname(resolve(path));
  if (!("num_layers" in tree)) return { config: configFromTree(tree, folder, changes) };
  // The pipeline's folder is the one around `transformer/`.
  const made = {
    model: { path: dirname(folder) },
    prompts: ["any"],
    rewards: [{ type: "hps-v2.1" }],
    promptsPerIteration: world,
    learning: { accumulate: defaults.learning.accumulate * world },
  };
  return { config: configFromTree(made, folder, changes), modelConfig: path };
}

const STAGE_NAMES = { encode: "encoding prompts", rollout: "rollout", update: "update" } as const;

function tableOf(inputs: MemoryInputs, plan: MemoryPlan): string[] {
  const { lasting, stages, activations, recompute, parameters } = plan;
  const { world, sharding, config, others } = inputs;
  const { sampling, learning } = config;
  const shared = (when: boolean) => (when && world > 1 ? `, one of ${world} shares` : "");
  const count = (all: number) =>
    all < 1e9 ? `${(all / 1e6).toPrecision(3)} million` : `${(all / 1e9).toPrecision(3)} billion`;
  const models = (until: "encoded" | "end") =>
    others
      .filter((other) => other.until === until)
      .map(({ name, assumed }) => (assumed ? `${name} (as published)` : name))
      .join(", ");
  const rows: [string, number, string][] = [
    ["weights", lasting.weights, `${count(parameters.all)} parameters, matrices in ${weightDType(config)}`],
    [
      "gradients",
      lasting.gradients,
      `f32, ${count(parameters.trained)} train${shared(sharding === "optimizer+gradients")}`,
    ],
    [
      "optimizer",
      lasting.optimizer,
      `f32 ${weightDType(config) === "f32" ? "m, v" : "masters, m, v"}${shared(sharding !== "none")}`,
    ],
    ["average", lasting.average, `running average, f32${shared(sharding !== "none")}`],
    ["models", lasting.otherModels, models("end")],
    ["communication", lasting.communication, "gradient buckets under way, the communicator's buffers"],
    [STAGE_NAMES.encode, stages.encode, `${models("encoded")}; gone before gradients and optimizer come`],
    [
      STAGE_NAMES.rollout,
      stages.rollout,
      `${rankShare(inputs).pictures} trajectories, ${sampling.batch} pictures at a time, ${sampling.width} x ${sampling.height}`,
    ],
    [
      STAGE_NAMES.update,
      stages.update,
      `trajectories; activations ${bytes(activations.planned)} at microbatch ${learning.microbatch}, ${recompute.blocks} of ${recompute.of} blocks recomputed (none ${bytes(activations.none)}, all ${bytes(activations.all)})`,
    ],
  ];
  const shown = rows.filter(([, size]) => size > 0);
  return shown.map(([name, size, note]) => `  ${name.padEnd(18)}${bytes(size).padStart(9)}  ${note}`);
}

function told(inputs: MemoryInputs, plan: MemoryPlan, advice: Suggestion[]): string {
  const { world, sharding, deviceMemory } = inputs;
  const lines = [
    `one of ${world} rank${world === 1 ? "" : "s"}, sharding ${sharding}`,
    ...tableOf(inputs, plan),
    `  ${"peak".padEnd(18)}${bytes(plan.peak).padStart(9)}  ${plan.peakStage === "encode" ? "while encoding prompts" : `in the ${plan.peakStage}`}`,
  ];
  if (deviceMemory === undefined || plan.usable === undefined) return lines.join("\n");
  const verdict = plan.fits ? "fits" : "does not fit";
  lines.push(`it ${verdict} in ${bytes(deviceMemory)}, of which ${bytes(plan.usable)} are counted on`);
  if (plan.fits) return lines.join("\n");
  const steps = advice.map(({ change, peak, fits }) => `  ${change}: ${bytes(peak)}${fits ? ", fits" : ""}`);
  const enough = advice.at(-1)?.fits
    ? []
    : ["  beyond that: more ranks, fewer or smaller pictures, or a larger device"];
  return [...lines, "what would help, each on top of the ones before:", ...steps, ...enough].join("\n");
}

async function plan(
  path: string,
  given: PlanArguments,
  context: CommandContext,
  output: Output,
): Promise<void> {
  const world = wholeNumber("--world", 1)(given.world ?? "1");
  const deviceMemory =
    given.deviceMemory === undefined ? undefined : parseBytes("--device-memory", given.deviceMemory);
  const { config, modelConfig } = await readConfig(path, given.set ?? [], world);
  const sharding = shardingOf(given.sharding, config, world);
  checkDeal(config, world);
  const inputs = await memoryInputs(config, {
    modelConfig: given.modelConfig ?? modelConfig,
    world,
    sharding,
    deviceMemory,
  });
  const result = planMemory(inputs);
  const advice = suggestions(inputs);
  if (result.fits === false) context.status = STATUS.failed;
  const { others, textTokens } = inputs;
  output.result(
    {
      world,
      sharding,
      deviceMemory: deviceMemory ?? null,
      ...result,
      models: others,
      textTokens,
      suggestions: advice,
    },
    told(inputs, result, advice),
  );
}

export function addPlan(program: Command, context: CommandContext): void {
  program
    .command("plan")
    .summary(SUMMARY)
    .description(SUMMARY)
    .argument("<config>", "training configuration or transformer's config.json")
    .option("--world <n>", "ranks that train together (default 1)")
    .option("--sharding <what>", `what ranks share out: ${SHARDINGS.join(", ")} (default: as configured)`)
    .option("--device-memory <size>", "memory of a device, such as 64GiB")
    .option("--model-config <file>", "the transformer's config.json, when the model is not at hand")
    .option("--set <name=value>", "change an option, any number of times", context.collect)
    .option("--json", "tell everything as one JSON object on stdout, in bytes")
    .addHelpText("after", MORE)
    .action(
      context.action((path: string, given: PlanArguments, output: Output) =>
        plan(path, given, context, output),
      ),
    );
}
