// npm run bench -- NAME [--json] [--threads N] [--repeat N] [--cpu-time]
//
//   ops     every op of the case table on this device (GFLOP/s, GB/s)
//   step    one GRPO iteration of tiny-shapes, stage by stage, beside the same in eager PyTorch
//   wide    FLUX-width blocks, forward and backward, beside PyTorch; weights in f32 and in bf16
//   memory  peak memory of both
//   scaling iterations of tiny-shapes on one rank and on two, and what ranks hold beside the plan; `theirs` is the rank alone, one
//           thread per rank, or the plan's figure
//   align   what recording costs, and comparing a pair of 1 GB files beside reading them
//   levers  rollout batch, saving beside the run, buffer of the collectives, each varied on --device; `theirs` is the first of its kind
//   rope-table   three ways to a rope table on an Ascend device; `theirs` is repeating along the last axis
//   collectives  all-reduce between --ranks N processes, beside Open MPI, as nccl-tests prints it
//
// With --json one object per line: name, ours, theirs, ratio (theirs / ours for times), unit, checked. PyTorch is found through
// DANCEFLUX_PYTHON (a Python with torch, diffusers, transformers and safetensors); without it `theirs` is null.
// --cpu-time counts processor seconds of each process in place of wall time, for machines that others use too; with --threads 1, since
// threads that wait in a loop count as well.
import { parseArgs } from "node:util";

const BENCHES = ["ops", "step", "wide", "memory", "scaling", "align", "collectives", "levers", "rope-table"];
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: "boolean", default: false },
    threads: { type: "string", default: "2" },
    repeat: { type: "string", default: "3" },
    ranks: { type: "string", default: "2" },
    device: { type: "string", default: "cpu" },
    "cpu-time": { type: "boolean", default: false },
  },
});
const [name] = positionals;
if (!BENCHES.includes(name)) {
  console.error(
    `usage: npm run bench -- ${BENCHES.join("|")} [--json] [--threads N] [--repeat N] [--ranks N] [--device NAME]`,
  );
  process.exit(2);
}

/** Prints one result; `checked` must say that the outputs agreed before anything was timed. */
function report({ name, ours, theirs = null, unit, checked, note }) {
  const ratio = theirs === null ? null : theirs / ours;
  if (options.json) {
    console.log(JSON.stringify({ name, ours, theirs, ratio, unit, checked, ...(note ? { note } : {}) }));
    return;
  }
  const number = (value) => (value === null ? "-" : value.toPrecision(4)).padStart(10);
  const factor = ratio === null ? "" : ` x${ratio.toFixed(2)}`;
  console.log(
    `${name.padEnd(34)}${number(ours)}${number(theirs)} ${unit}${factor}${checked ? "" : "  NOT CHECKED"}${note ? `  ${note}` : ""}`,
  );
}

const { run, header = true } = await import(`./${name}.mjs`);
if (!options.json && header)
  console.log(
    `${"".padEnd(34)}${"ours".padStart(10)}${({ scaling: "one rank", levers: "first", "rope-table": "repeat" }[name] ?? "PyTorch").padStart(10)}`,
  );
const good = await run({
  report,
  threads: Number(options.threads),
  repeat: Number(options.repeat),
  cpuTime: options["cpu-time"],
  ranks: Number(options.ranks),
  device: options.device,
  json: options.json,
});
process.exit(good === false ? 1 : 0);
