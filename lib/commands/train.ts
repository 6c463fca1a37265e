/** `danceflux train CONFIG`: trains, or goes on where an earlier run stopped. */
import type { Command } from "commander";
import type { TrainConfig } from "../grpo/config.js";
import type { Progress } from "../grpo/trainer.js";
import { loadConfig } from "../load_config.js";
import { change, duration, shortNumber } from "../report/html.js";
import type { TrainSummary } from "../report/summary.js";
import { type TrainResult, type TrainRunOptions, trainFromConfig } from "../train.js";
import type { CommandContext } from "./context.js";
import type { Output } from "./output.js";
import { TrainingClock } from "./training_clock.js";

const SUMMARY = "Train a FLUX model with DanceGRPO";
const MORE = `
CONFIG is a JSON file; paths in it are relative to it. A run whose folder (output.folder) holds checkpoints of the same
configuration is resumed. Ctrl-C finishes the update under way, writes a checkpoint and ends; Ctrl-C twice ends at once.

Examples:
  danceflux train models/tiny-shapes/demo.json
  danceflux train run.json --set learning.learningRate=2e-5 --set output.folder=runs/second
Started as one of several ranks (danceflux launch, torchrun, Slurm, ...) it trains together with the others, and only
the first rank tells what happens.
With --json every line of stdout is an object with "type": iteration, evaluation, and last summary.`;

/** before -> after of each measured number. */
export function summaryLines({ before, after, measured }: TrainSummary): string[] {
  if (!before || !after) return ["nothing was measured"];
  const names = Object.keys(after).filter((name) => name !== "reward" || Object.keys(after).length === 1);
  const width = Math.max(...names.map((name) => name.length));
  const lines = names.map((name) => {
    const [from, to] = [before[name] ?? Number.NaN, after[name]!];
    return `  ${name.padEnd(width)}  ${shortNumber(from)} -> ${shortNumber(to)}  ${change(from, to)}`.trimEnd();
  });
  return [
    measured === "evaluation"
      ? "on held-out prompts, before and after:"
      : "in training, first and last iteration:",
    ...lines,
  ];
}

function told({ finished, folder, report, summary }: TrainResult): string {
  const state = finished ? "finished" : "stopped";
  const more = finished ? [] : ["the same command goes on from here"];
  return [
    `${state} after ${summary.iterations} iteration${summary.iterations === 1 ? "" : "s"}, ${duration(summary.seconds)}`,
    ...summaryLines(summary),
    `run folder: ${folder}`,
    `report: ${report}`,
    ...more,
  ].join("\n");
}

/** First signal: stop in good order; second: end at once, as a shell would have it. */
function stopOnSignals(say: (text: string) => void): { stop: AbortSignal; done(): void } {
  const controller = new AbortController();
  const onSignal = (signal: NodeJS.Signals) => {
    if (controller.signal.aborted) process.exit(signal === "SIGINT" ? 130 : 143);
    controller.abort();
    say("danceflux: stopping; the checkpoint is written first (Ctrl-C again: at once)");
  };
  const signals = ["SIGINT", "SIGTERM"] as const;
  for (const signal of signals) process.on(signal, onSignal);
  const done = () => {
    for (const signal of signals) process.off(signal, onSignal);
  };
  return { stop: controller.signal, done };
}

function tellingOptions(config: TrainConfig, output: Output): TrainRunOptions {
  const clock = new TrainingClock(config);
  return {
    onLoading: (what) => output.progress.update(`loading ${what}`),
    onWarning: (message) => output.warn(message),
    onProgress: (progress: Progress) => {
      clock.progress(progress);
      output.progress.update(clock.line(progress));
    },
    onIteration: (metrics) => {
      clock.iteration(metrics.iteration, metrics.seconds.total - metrics.seconds.encode);
      output.line(metrics);
    },
    onEvaluation: (metrics) => {
      clock.evaluation(metrics.seconds);
      const means = Object.entries(metrics.rewards).map(([name, { mean }]) => `${name} ${shortNumber(mean)}`);
      output.progress.note(`iteration ${metrics.iteration}: ${means.join(", ")}`);
      output.line(metrics);
    },
  };
}

/** What ranks other than the first tell: warnings, and what rank warns. */
const quietOptions = (output: Output, rank: () => number): TrainRunOptions => ({
  onWarning: (message) => output.warn(`rank ${rank()}: ${message}`),
});

/** Calls reach `telling` on the first rank, `quiet` on the others. */
function byRank(telling: TrainRunOptions, quiet: TrainRunOptions, isFirst: () => boolean): TrainRunOptions {
  const names = ["onLoading", "onWarning", "onProgress", "onIteration", "onEvaluation"] as const;
  const chosen =
    (name: (typeof names)[number]) =>
    (...args: unknown[]) =>
      ((isFirst() ? telling : quiet)[name] as ((...args: unknown[]) => void) | undefined)?.(...args);
  return Object.fromEntries(names.map((name) => [name, chosen(name)]));
}

async function train(path: string, changes: string[], output: Output): Promise<void> {
  const config = await loadConfig(path, changes);
  let rank = 0;
  const isFirst = () => rank === 0;
  const { stop, done } = stopOnSignals((text) => isFirst() && output.progress.say(text));
  try {
    const telling = byRank(
      tellingOptions(config, output),
      quietOptions(output, () => rank),
      isFirst,
    );
    const onRank = (own: number) => {
      rank = own;
    };
    const result = await trainFromConfig(config, { ...telling, onRank, stop });
    if (!isFirst()) return;
    const { finished, folder, report, summary } = result;
    output.result({ type: "summary", finished, folder, report, ...summary }, told(result));
  } finally {
    done();
  }
}

export function addTrain(program: Command, context: CommandContext): void {
  program
    .command("train")
    .summary(SUMMARY)
    .description(SUMMARY)
    .argument("<config>", "configuration file, JSON")
    .option("--set <name=value>", "change an option, any number of times", context.collect)
    .option("--json", "tell everything as JSON lines on stdout")
    .addHelpText("after", MORE)
    .action(
      context.action((path: string, { set = [] }: { set?: string[] }, output: Output) =>
        train(path, set, output),
      ),
    );
}
