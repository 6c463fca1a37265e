// npm run bench -- NAME [--json] [--threads N] [--repeat N] [--cpu-time]
//
//   ops     every op of the case table on this device (GFLOP/s, GB/s)
//   step    one GRPO iteration of tiny-shapes, stage by stage, beside the same in eager PyTorch
//   wide    FLUX-width blocks, forward and backward, beside PyTorch; weights in f32 and in bf16
//   memory  peak memory of both
//   model   FLUX at its real size beside PyTorch on --device: forward at 512, 720 and 1024 px, training passes with LoRA and at full width,
//           one LoRA iteration of 12 pictures by stage, peak memory. --size full|small (default: full, on the CPU small), --layers 19,38,
//           --pixels 512,720, --parts forward,lora,full,iteration, --dtypes bf16,f32, --torch eager,compiled,autotuned (which of PyTorch's
//           ways are tried; the fastest counts). Its files, 27 GB at full size, go to DANCEFLUX_BENCH_FOLDER, default the temporary folder
//   scaling iterations of tiny-shapes on one rank and on two, and what ranks hold beside the plan; `theirs` is the rank alone, one
//           thread per rank, or the plan's figure
//   align   what recording costs, and comparing a pair of 1 GB files beside reading them
//   levers  rollout batch, saving beside the run, buffer of the collectives, each varied on --device; `theirs` is the first of its kind
//   rope-table   three ways to a rope table on an Ascend device; `theirs` is repeating along the last axis
//   collectives  all-reduce between --ranks N processes, beside Open MPI, as nccl-tests prints it
//
// With --json one object per line: name, ours, theirs, ratio (theirs / ours for times), unit, checked; `model` adds rate (TFLOP/s), peak
// (GiB), aim and floor where there are any. PyTorch is found through DANCEFLUX_PYTHON (a Python with torch, diffusers, transformers and
// safetensors; `model` needs no diffusers); without it `theirs` is null, and `model`, whose weights it makes, does not run.
// --cpu-time counts processor seconds of each process in place of wall time, for machines that others use too; with --threads 1, since
// threads that wait in a loop count as well.
import { parseArgs } from "node:util";

const BENCHES = [
  "ops",
  "step",
  "wide",
  "memory",
  "model",
  "scaling",
  "align",
  "collectives",
  "levers",
  "rope-table",
];
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: "boolean", default: false },
    threads: { type: "string", default: "2" },
    repeat: { type: "string", default: "3" },
    ranks: { type: "string", default: "2" },
    device: { type: "string", default: "cpu" },
    "cpu-time": { type: "boolean", default: false },
    size: { type: "string" },
    layers: { type: "string" },
    pixels: { type: "string" },
    parts: { type: "string" },
    dtypes: { type: "string" },
    torch: { type: "string" },
  },
});
const [name] = positionals;
if (!BENCHES.includes(name)) {
  console.error(
    `usage: npm run bench -- ${BENCHES.join("|")} [--json] [--threads N] [--repeat N] [--ranks N] [--device NAME]`,
  );
  process.exit(2);
}

const number = (value) => (typeof value === "number" ? value.toPrecision(4) : "-");

/** What a row of `model` says beside its time, for people. */
function extras({ rate, peak, aim, floor }) {
  const pair = (values, unit) => values && `${number(values.ours)} / ${number(values.theirs)} ${unit}`;
  const bound = aim && (aim.most === undefined ? `at least ${aim.least}` : `at most ${aim.most}`);
  return [
    pair(rate, "TFLOP/s"),
    peak && `peak ${pair(peak, "GiB")}`,
    aim && `aim ${bound} ${aim.unit}: ${aim.met ? "met" : "NOT MET"}`,
    floor && `floor ${floor} s`,
  ].filter(Boolean);
}

/** Prints one result; `checked` must say that the outputs agreed before anything was timed. `ours` is null where nothing was timed. */
function report({ name, ours, theirs = null, unit, checked, note, ...more }) {
  const ratio = theirs === null || ours === null ? null : theirs / ours;
  if (options.json) {
    console.log(
      JSON.stringify({ name, ours, theirs, ratio, unit, checked, ...more, ...(note ? { note } : {}) }),
    );
    return;
  }
  const factor = ratio === null ? "" : ` x${ratio.toFixed(2)}`;
  const said = [checked ? "" : "NOT CHECKED", ...extras(more), note].filter(Boolean);
  const told = said.length > 0 ? `  ${said.join("; ")}` : "";
  console.log(
    `${name.padEnd(34)}${number(ours).padStart(10)}${number(theirs).padStart(10)} ${unit}${factor}${told}`,
  );
}

const { run, header = true } = await import(`./${name}.mjs`);
if (!options.json && header)
  console.log(
    `${"".padEnd(34)}${"ours".padStart(10)}${({ scaling: "one rank", levers: "first", "rope-table": "repeat" }[name] ?? "PyTorch").padStart(10)}`,
  );
const good = await run({
  ...options,
  report,
  threads: Number(options.threads),
  repeat: Number(options.repeat),
  cpuTime: options["cpu-time"],
  ranks: Number(options.ranks),
});
process.exit(good === false ? 1 : 0);
