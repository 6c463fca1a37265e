/** The command line: `danceflux COMMAND ...`. */
import { Command, CommanderError } from "commander";
import { DanceError } from "../errors.js";
import { nearest } from "../nearest.js";
import { version } from "../version.js";
import { addAlign } from "./align.js";
import { addBench } from "./bench.js";
import { addBuild } from "./build.js";
import { CommandContext } from "./context.js";
import { addDoctor } from "./doctor.js";
import { addLaunch } from "./launch.js";
import { Output, STATUS, type Streams, statusOf } from "./output.js";
import { addPlan } from "./plan.js";
import { addReport } from "./report.js";
import { addSample } from "./sample.js";
import { addScore } from "./score.js";
import { addTrain } from "./train.js";

const COMMANDS = [
  addDoctor,
  addTrain,
  addLaunch,
  addSample,
  addScore,
  addAlign,
  addReport,
  addPlan,
  addBench,
  addBuild,
];

const MORE = `
Exit status: 0 done, 1 failed, 2 wrong usage. Every command has --help with an example, and --json for machines.

Examples:
  danceflux doctor
  danceflux train models/tiny-shapes/demo.json
  danceflux launch --nproc-per-node 2 -- train models/tiny-shapes/demo.json
  danceflux sample runs/demo --prompt "two red circles on a gray background"`;

/** commander's complaint in our words, with the nearest known option or command. */
function usageError(error: CommanderError, command: Command): DanceError {
  const message = error.message.replace(/^error: /, "").replace(/\s*\(Did you mean.*$/s, "");
  const [, unknown] = /unknown (?:option|command) '([^'=]+)/.exec(message) ?? [];
  if (unknown === undefined)
    return new DanceError("ERR_USAGE", message, { hint: `see danceflux ${command.name()} --help` });
  const known = unknown.startsWith("-")
    ? command.options.map((option) => option.long ?? option.short!).concat("--help")
    : command.commands.map((entry) => entry.name());
  if (known.length === 0) return new DanceError("ERR_USAGE", message);
  return new DanceError("ERR_USAGE", message, { hint: `the nearest is ${nearest(unknown, known)}` });
}

/** A command and those below it. */
const withInner = (command: Command): Command[] => [command, ...command.commands.flatMap(withInner)];

/** Runs one command line. @returns the exit status; nothing is thrown. */
export async function main(argv: readonly string[], streams: Streams = process): Promise<number> {
  const program = new Command("danceflux");
  const context = new CommandContext(streams, () => program.commands.map((command) => command.name()));
  program
    .description("Fine-tune FLUX text-to-image models with DanceGRPO: CPU, CUDA and Ascend")
    .version(version(), "-v, --version", "print the version")
    .helpOption("-h, --help", "print help")
    .addHelpText("after", MORE);
  for (const add of COMMANDS) add(program, context);
  let at: Command = program;
  for (const command of withInner(program)) {
    command.exitOverride((error) => {
      at = command;
      throw error;
    });
    command.configureOutput({
      writeOut: (text) => void streams.stdout.write(text),
      writeErr: (text) => void streams.stderr.write(text),
      // Errors are told once, below.
      outputError: () => {},
    });
  }
  try {
    await program.parseAsync([...argv], { from: "user" });
    return context.status;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return STATUS.fine;
    const output = new Output(streams, argv.includes("--json"));
    // Without a command commander shows its help by itself, as an error.
    if (error instanceof CommanderError && error.code === "commander.help") return STATUS.usage;
    output.error(error instanceof CommanderError ? usageError(error, at) : error);
    return error instanceof CommanderError ? STATUS.usage : statusOf(error);
  }
}
