/** `danceflux launch -- train CONFIG | SCRIPT`: one process per device, on this host or on several. */
import type { Command } from "commander";
import { type LaunchEvent, type LaunchOptions, launch } from "../distributed/launch.js";
import { DanceError } from "../errors.js";
import { type CommandContext, decimal, wholeNumber } from "./context.js";
import type { Output } from "./output.js";

const SUMMARY = "Start a training or a script once per device";
const MORE = `
WHAT is a danceflux command with its arguments, or a JavaScript file with its. Each process finds its place in its environment
(DANCEFLUX_RANK and so on, and torchrun's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT); initGroup() reads it. Lines are
passed on with [rank N] before them. When a rank fails, all are ended, and with --max-restarts started again: a training then goes
on from its last checkpoint. Each rank gets its share of the cores (DANCEFLUX_THREADS) unless told otherwise. SIGINT, SIGTERM and
SIGHUP are passed on; the third ends the ranks at once.

On several hosts start the same command on each with its own --node-rank; DANCEFLUX_SECRET on all of them keeps strangers out.

Examples:
  danceflux launch --nproc-per-node 4 -- train run.json
  danceflux launch --nproc-per-node 8 --max-restarts 3 -- train.mjs --fast
  danceflux launch --nproc-per-node 8 --nnodes 2 --node-rank 0 --rdzv-endpoint node0:29400 -- train run.json
With --json every line of stdout is an object with "type": start, output (rank, stream, line), failed, restart, signal, warning, summary.`;

interface Given {
  nprocPerNode: number;
  nnodes: number;
  nodeRank?: number;
  rdzvEndpoint?: string;
  maxRestarts: number;
  grace: number;
  timeout: number;
  silence: number;
}

/** Where schedulers say which host of the run this is. */
const NODE_VARIABLES = ["DANCEFLUX_NODE_RANK", "SLURM_NODEID", "JOB_COMPLETION_INDEX"] as const;

function nodeRankOf({ nnodes, nodeRank }: Given): number | undefined {
  if (nodeRank !== undefined || nnodes === 1) return nodeRank;
  const name = NODE_VARIABLES.find((each) => process.env[each]);
  return name === undefined ? undefined : wholeNumber(name, 0)(process.env[name]!);
}

function sentence(event: LaunchEvent): string | undefined {
  switch (event.type) {
    case "failed":
      return `rank ${event.rank} failed first: ${event.reason}`;
    case "restart":
      return `starting all ranks again, ${event.attempt} of ${event.of}`;
    case "signal":
      return `${event.signal}: passed on to the ranks`;
    case "warning":
      return event.message;
    case "start":
      return undefined;
  }
}

function optionsOf(what: string[], given: Given, context: CommandContext, output: Output): LaunchOptions {
  const [first = "", ...args] = what;
  const nodeRank = nodeRankOf(given);
  return {
    nprocPerNode: given.nprocPerNode,
    nnodes: given.nnodes,
    maxRestarts: given.maxRestarts,
    graceSeconds: given.grace,
    timeoutSeconds: given.timeout,
    silenceSeconds: given.silence,
    ...(nodeRank === undefined ? {} : { nodeRank }),
    ...(given.rdzvEndpoint === undefined ? {} : { endpoint: given.rdzvEndpoint }),
    ...(context.isCommand(first) ? { command: [first] } : { script: first }),
    args,
    stdout: context.streams.stdout,
    stderr: context.streams.stderr,
    ...(output.json
      ? { onLine: (rank, stream, line) => output.line({ type: "output", rank, stream, line }) }
      : {}),
    onEvent: (event) => {
      output.line(event);
      const text = sentence(event);
      if (text !== undefined) output.warn(text);
    },
  };
}

/** @throws {DanceError} `ERR_USAGE` */
const secondsOf = (name: string) => (text: string) => {
  const value = decimal(name)(text);
  if (value > 0 && value <= 1e6) return value;
  throw new DanceError("ERR_USAGE", `${name}: expected a number of seconds above 0, got ${text}`);
};

export function addLaunch(program: Command, context: CommandContext): void {
  program
    .command("launch")
    .summary(SUMMARY)
    .description(SUMMARY)
    .argument("<what...>", "after --: a danceflux command, or a JavaScript file, with its arguments")
    .requiredOption("--nproc-per-node <n>", "processes on this host", wholeNumber("--nproc-per-node", 1))
    .option("--nnodes <n>", "hosts", wholeNumber("--nnodes", 1), 1)
    .option("--node-rank <n>", "this host, from 0 (default: the scheduler's)", wholeNumber("--node-rank", 0))
    .option("--rdzv-endpoint <host:port>", "where node 0 serves the rendezvous (default: a free local port)")
    .option("--max-restarts <n>", "how often to start all again", wholeNumber("--max-restarts", 0), 0)
    .option("--grace <seconds>", "between SIGTERM and SIGKILL", secondsOf("--grace"), 30)
    .option("--timeout <seconds>", "longest wait for other hosts", secondsOf("--timeout"), 600)
    .option("--silence <seconds>", "a rank not heard of for so long has failed", secondsOf("--silence"), 60)
    .option("--json", "tell everything as JSON lines on stdout")
    .addHelpText("after", MORE)
    .action(
      context.action(async (what: string[], given: Given, output: Output) => {
        const { ranks, restarts, stoppedBy } = await launch(optionsOf(what, given, context, output));
        output.line({ type: "summary", ranks, restarts, stoppedBy });
      }),
    );
}
