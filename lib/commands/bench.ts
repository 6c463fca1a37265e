/** `danceflux bench collectives`: how fast ranks exchange numbers on these devices, and whether exactly. */
import type { Command } from "commander";
import { openDevice } from "../device.js";
import { detectPlace } from "../distributed/environment.js";
import { initGroup } from "../distributed/group.js";
import { launch } from "../distributed/launch.js";
import {
  COLLECTIVES,
  type CollectiveName,
  type CollectiveTiming,
  measureCollectives,
} from "../distributed/measure.js";
import { DanceError } from "../errors.js";
import { rankDevice } from "../rank_device.js";
import { type CommandContext, wholeNumber } from "./context.js";
import { type Output, STATUS } from "./output.js";
import { parseBytes } from "./plan.js";

const SUMMARY = "Measure the collectives between ranks: time, bandwidths, wrong elements";
const MORE = `
Starts the ranks itself with --nproc-per-node, or is one of them under danceflux launch, torchrun, srun or mpirun, on one host or
several. Every size is checked with whole numbers, of which not one may be wrong, before it is timed. Bandwidths are those of
nccl-tests: algbw is bytes by time, busbw is that times what a rank must send of it. Exit status 1 when an element was wrong.

Examples:
  danceflux bench collectives --nproc-per-node 2
  danceflux bench collectives --nproc-per-node 8 --device ascend --sizes 1MiB,64MiB --operations all_reduce
  danceflux launch --nproc-per-node 4 --nnodes 2 --node-rank 0 --rdzv-endpoint node0:29400 -- bench collectives
With --json every line of stdout is an object, one per operation and size.`;

const SIZES = "4,4KiB,64KiB,1MiB,16MiB,64MiB";
/** What a rank takes for one size: three tensors of it on the device, and some on the host. */
const MOST_BYTES = 2 ** 33;

interface Given {
  nprocPerNode?: number;
  device: string;
  sizes: string;
  operations: string;
  json?: boolean;
}

function sizesOf(text: string): number[] {
  return text.split(",").map((each) => {
    const bytes = parseBytes("--sizes", each);
    if (bytes <= MOST_BYTES) return bytes;
    throw new DanceError("ERR_USAGE", `--sizes: expected at most 8GiB, got ${JSON.stringify(each)}`);
  });
}

function operationsOf(text: string): CollectiveName[] {
  return text.split(",").map((each) => {
    const found = COLLECTIVES.find((name) => name === each.trim());
    if (found) return found;
    const known = COLLECTIVES.join(", ");
    throw new DanceError("ERR_USAGE", `--operations: expected some of ${known}, got ${JSON.stringify(each)}`);
  });
}

const COLUMNS = ["operation", "bytes", "time us", "algbw GB/s", "busbw GB/s", "wrong"] as const;
const rowOf = (cells: readonly string[]) =>
  cells.map((cell, i) => (i === 0 ? cell.padEnd(16) : cell.padStart(13))).join("");
const cellsOf = (timing: CollectiveTiming) => [
  timing.collective,
  String(timing.bytes),
  (timing.milliseconds * 1000).toFixed(1),
  timing.algorithmBandwidth.toFixed(3),
  timing.busBandwidth.toFixed(3),
  String(timing.wrong),
];

/** This process is one of the ranks. The first tells. */
async function measure(given: Given, context: CommandContext, output: Output): Promise<void> {
  const options = { sizes: sizesOf(given.sizes), collectives: operationsOf(given.operations) };
  const place = detectPlace({}, process.env);
  const own = rankDevice({ name: given.device }, place);
  using device = openDevice(own.name, own.options);
  const group = await initGroup({ device });
  try {
    const tells = group.rank === 0;
    let head = `# ${group.communicator?.description ?? ""}, f32, on ${device.description}\n${rowOf(COLUMNS)}\n`;
    for await (const timing of measureCollectives(device.handle, group, options)) {
      if (timing.wrong > 0) context.status = STATUS.failed;
      if (!tells) continue;
      output.result(timing, head + rowOf(cellsOf(timing)));
      head = "";
    }
  } catch (error) {
    group.abort(error instanceof Error ? error.message : String(error));
    throw error;
  } finally {
    await group.close();
  }
}

async function collectives(given: Given, context: CommandContext, output: Output): Promise<void> {
  if (given.nprocPerNode === undefined) return measure(given, context, output);
  // Wrong usage is told once, by this process.
  sizesOf(given.sizes);
  operationsOf(given.operations);
  const { stdout, stderr } = context.streams;
  const args = ["--device", given.device, "--sizes", given.sizes, "--operations", given.operations];
  await launch({
    nprocPerNode: given.nprocPerNode,
    command: ["bench", "collectives"],
    args: given.json ? [...args, "--json"] : args,
    onLine: (_rank, stream, line) => (stream === "stdout" ? stdout : stderr).write(`${line}\n`),
  });
}

export function addBench(program: Command, context: CommandContext): void {
  const bench = program.command("bench").summary("Measure this machine").description("Measure this machine");
  bench
    .command("collectives")
    .summary(SUMMARY)
    .description(SUMMARY)
    .option("--nproc-per-node <n>", "start so many ranks on this host", wholeNumber("--nproc-per-node", 2))
    .option("--device <name>", "each rank's: cpu, cuda, ascend", "cpu")
    .option("--sizes <list>", "in bytes, with or without a unit", SIZES)
    .option("--operations <list>", `some of ${COLLECTIVES.join(", ")}`, COLLECTIVES.join(","))
    .option("--json", "one JSON object per line on stdout")
    .addHelpText("after", MORE)
    .action(context.action((given: Given, output: Output) => collectives(given, context, output)));
}
