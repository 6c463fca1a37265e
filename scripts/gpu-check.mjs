// scripts/gpu-check [options]: builds the CUDA plugin, runs everything that needs a GPU, and writes a page and its numbers.
// The stages are a table; --plan shows it without running anything.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { inRoot, outputOf } from "./common.mjs";
import { compareRuns, modelVerdict, parseTests, ratioDeviation, writePage } from "./gpu-page.mjs";

const HELP = `usage: scripts/gpu-check [options]

  --device N          which GPU (default 0)
  --wheels DIR        the folder nvidia of a site-packages: headers and libraries of NVIDIA's wheels instead of the toolkit's
  --python PROGRAM    a Python with torch and transformers: it makes the weights of bench-model and gives times to compare with
  --only A,B          these stages; --skip A,B: all but these
  --out DIR           where the page and its numbers go (default bench/results)
  --plan              tell what would run, and run nothing; with --json for machines
  --help

example: scripts/gpu-check --wheels /opt/venv/lib/python3.12/site-packages/nvidia --python /opt/venv/bin/python

Exit status: 0 all good, 1 something failed, 2 wrong usage, 3 there is no GPU here.`;

function usage(message) {
  console.error(`gpu-check: ${message}\n${HELP}`);
  process.exit(2);
}

function options() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        device: { type: "string", default: "0" },
        wheels: { type: "string" },
        python: { type: "string" },
        only: { type: "string" },
        skip: { type: "string" },
        out: { type: "string", default: inRoot("bench", "results") },
        plan: { type: "boolean", default: false },
        json: { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    });
    if (positionals.length > 0) usage(`expected no argument, got ${positionals[0]}`);
    if (!/^\d+$/.test(values.device)) usage(`--device: expected a number, got ${values.device}`);
    return values;
  } catch (error) {
    return usage(error.message);
  }
}

const chosen = options();
if (chosen.help) {
  console.log(HELP);
  process.exit(0);
}
const folder = inRoot("build", "gpu");
const tests = join(folder, "danceflux_tests");
const device = `cuda:${chosen.device}`;
const runs = { plain: join(folder, "tiny-run"), graphs: join(folder, "tiny-run-graphs") };

/** The card's name, compute capability, driver and memory, or undefined. */
function card() {
  const text = outputOf("nvidia-smi", [
    `--id=${chosen.device}`,
    "--query-gpu=name,compute_cap,driver_version,memory.total,clocks.max.sm,power.limit",
    "--format=csv,noheader",
  ]);
  const [name, capability, driver, memory, clock, power] = (text ?? "").trim().split(", ");
  return capability ? { name, capability, driver, memory, clock, power } : undefined;
}

const gpu = card();
const architecture = `${(gpu?.capability ?? "9.0").replace(".", "")}-real`;
const wheels = chosen.wheels;
const libraries = wheels ? ["cu13", "cudnn", "nccl"].map((name) => join(wheels, name, "lib")).join(":") : "";
const environment = {
  DANCEFLUX_TEST_BACKEND: device,
  DANCEFLUX_PLUGIN_PATH: folder,
  ...(libraries ? { DANCEFLUX_CUDA_LIBRARIES: libraries } : {}),
  ...(chosen.python ? { DANCEFLUX_PYTHON: chosen.python } : {}),
};
const OWN_ATTENTION = '{"attention": "own"}';
const ownAttention = { DANCEFLUX_TEST_OPTIONS: OWN_ATTENTION };
const flux = (...args) => [join(folder, "danceflux_flux_shapes_bench"), ["--device", "cuda", ...args]];
/** The shipped tiny model for 20 iterations. */
const training = (run, ...more) => [
  process.execPath,
  [
    ...[inRoot("dist", "cli.js"), "train", inRoot("models", "tiny-shapes", "demo.json")],
    ...[`device.name=${device}`, `output.folder=${run}`, "iterations=20", ...more].flatMap((setting) => [
      "--set",
      setting,
    ]),
  ],
];
const determinism = (level) => JSON.stringify({ determinism: level });
const sanitizer = (tool) => [
  "compute-sanitizer",
  ["--tool", tool, "--error-exitcode", "9", tests, "ops: every device agrees", "gradient: every device"],
];

/** name, what it shows, commands and what they find in the environment besides; `reads` makes the stage's numbers from what was printed. */
const stages = [
  {
    name: "build",
    shows: "the plugin, the C++ tests and the benches compile for this card",
    commands: [
      [
        "cmake",
        [
          ...["-G", "Ninja", "-S", inRoot(), "-B", folder, "-DDANCEFLUX_TESTS=ON", "-DDANCEFLUX_CUDA=ON"],
          `-DCMAKE_CUDA_ARCHITECTURES=${architecture}`,
          ...(wheels ? [`-DDANCEFLUX_CUDA_WHEELS=${wheels}`] : []),
        ],
      ],
      [
        "ninja",
        [
          "-C",
          folder,
          "danceflux_cuda",
          "danceflux_tests",
          "danceflux_op_bench",
          "danceflux_flux_shapes_bench",
        ],
      ],
    ],
  },
  {
    name: "ops",
    shows:
      "every op against the reference in double, f32 and bf16; an image's bits do not depend on its batch",
    commands: [[tests, ["ops: every device", "ops: an image"]]],
    reads: parseTests,
  },
  {
    name: "gradients",
    shows: "every gradient against the reference; the same bits again",
    commands: [[tests, ["gradient: every device", "gradient: the same bits"]]],
    reads: parseTests,
  },
  {
    name: "run-to-run",
    shows: "the op table and the same bits again, where a row may depend on its batch mates",
    commands: [[tests, ["ops: every device", "gradient: every device", "gradient: the same bits"]]],
    environment: { DANCEFLUX_TEST_OPTIONS: determinism("run-to-run") },
    reads: parseTests,
  },
  {
    name: "off",
    shows: "the op table where bits may differ from run to run",
    commands: [[tests, ["ops: every device", "gradient: every device"]]],
    environment: { DANCEFLUX_TEST_OPTIONS: determinism("off") },
    reads: parseTests,
  },
  {
    name: "own-attention",
    shows: "the same of the op table where attention takes the plugin's own kernels instead of cuDNN's",
    commands: [
      [tests, ["ops: every device", "ops: an image", "gradient: every device", "gradient: the same bits"]],
    ],
    environment: ownAttention,
    reads: parseTests,
  },
  {
    name: "models",
    shows: "FLUX, T5, CLIP, the autoencoder and a training step against frozen numbers of PyTorch",
    commands: [[tests, ["flux", "models", "t5", "clip", "autoencoder", "train"]]],
    reads: parseTests,
  },
  {
    name: "memcheck",
    shows: "no kernel of the op table reads or writes outside its memory",
    commands: [sanitizer("memcheck")],
    environment: ownAttention, // cuDNN's kernels are not ours to mend
    optional: "compute-sanitizer",
  },
  {
    name: "racecheck",
    shows: "no kernel of the op table races in shared memory",
    commands: [sanitizer("racecheck")],
    environment: ownAttention,
    optional: "compute-sanitizer",
  },
  {
    name: "training",
    shows: "the shipped tiny model trains; the ratio before each first update is exactly 1",
    commands: [["npm", ["run", "build"]], training(runs.plain)],
    reads: () => ratioDeviation(join(runs.plain, "metrics.jsonl")),
  },
  {
    name: "graphs",
    shows:
      "the same training with its sampling steps as CUDA graphs: the same numbers, and the time a rollout takes",
    commands: [["npm", ["run", "build"]], training(runs.graphs, "device.graphs=true")],
    reads: () => compareRuns(join(runs.plain, "metrics.jsonl"), join(runs.graphs, "metrics.jsonl")),
  },
  {
    name: "bench-ops",
    shows: "the bench rows of the op table, each checked before it is timed",
    commands: [[join(folder, "danceflux_op_bench"), ["--device", "cuda"]]],
    reads: parseLines,
  },
  {
    name: "bench-flux",
    shows:
      "products and attention at the sizes of FLUX.1-dev at 512, 720 and 1024 px, checked on sampled rows",
    commands: [flux()],
    reads: parseLines,
  },
  {
    name: "bench-own-attention",
    shows: "attention at those sizes by the plugin's own kernels",
    commands: [flux("--ceilings", "none", "--filter", "attention", "--options", OWN_ATTENTION)],
    reads: parseLines,
  },
  {
    name: "bench-run-to-run",
    shows: "the same sizes where a row may depend on its batch mates: what strict costs",
    commands: [flux("--ceilings", "none", "--options", determinism("run-to-run"))],
    reads: parseLines,
  },
  {
    name: "bench-off",
    shows: "the same sizes where bits may differ from run to run",
    commands: [flux("--ceilings", "none", "--options", determinism("off"))],
    reads: parseLines,
  },
  {
    name: "bench-torch",
    shows: "the same in PyTorch on the same card",
    commands: chosen.python ? [[chosen.python, [inRoot("bench", "peers", "flux_shapes.py")]]] : [],
    reads: parseLines,
    optional: chosen.python,
  },
  {
    name: "bench-model",
    shows:
      "FLUX.1-dev at its real size beside PyTorch: forward, LoRA and full training passes, an iteration; outputs compared first",
    commands: chosen.python
      ? [
          ["npm", ["run", "build"]],
          [
            process.execPath,
            [inRoot("bench", "run.mjs"), "model", "--json", "--device", device, "--repeat", "5"],
          ],
        ]
      : [],
    reads: (text) => modelVerdict(parseLines(text).rows),
    optional: chosen.python,
  },
];

/** One JSON object a line; others are told to people only. */
function parseLines(text) {
  return {
    rows: text
      .split("\n")
      .filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line)),
  };
}

function selected() {
  const names = stages.map((stage) => stage.name);
  const list = (text) => (text ?? "").split(",").filter(Boolean);
  for (const name of [...list(chosen.only), ...list(chosen.skip)])
    if (!names.includes(name)) usage(`expected stages among ${names.join(", ")}, got ${name}`);
  const only = list(chosen.only);
  return stages.filter(
    ({ name }) => (only.length === 0 || only.includes(name)) && !list(chosen.skip).includes(name),
  );
}

/** What a stage that broke off had found. */
function soFar(stage, text) {
  try {
    return stage.reads?.(text) ?? {};
  } catch {
    return {};
  }
}

function runStage(stage) {
  const started = Date.now();
  let text = "";
  for (const [program, args] of stage.commands) {
    console.error(`\n==== ${stage.name}: ${program} ${args.join(" ")}`);
    const result = spawnSync(program, args, {
      cwd: inRoot(),
      env: { ...process.env, ...environment, ...stage.environment },
      encoding: "utf8",
      maxBuffer: 1 << 28,
      stdio: ["ignore", "pipe", "inherit"],
    });
    text += result.stdout ?? "";
    process.stderr.write(result.stdout ?? "");
    if (result.error?.code === "ENOENT" && stage.optional)
      return { name: stage.name, shows: stage.shows, state: "not run", why: `no ${program} here` };
    if (result.status !== 0)
      return {
        ...soFar(stage, text),
        ...{ name: stage.name, shows: stage.shows, state: "failed", seconds: (Date.now() - started) / 1000 },
        why: result.error?.message ?? `${program} ended with status ${result.status}`,
        tail: text.split("\n").slice(-40).join("\n"),
      };
  }
  if (stage.commands.length === 0)
    return { name: stage.name, shows: stage.shows, state: "not run", why: "no --python was given" };
  let numbers = {};
  try {
    numbers = stage.reads?.(text) ?? {};
  } catch (error) {
    return { name: stage.name, shows: stage.shows, state: "failed", why: error.message };
  }
  return {
    ...{ name: stage.name, shows: stage.shows, state: numbers.bad ? "failed" : "passed" },
    ...{ seconds: (Date.now() - started) / 1000, ...numbers },
  };
}

const todo = selected();
if (chosen.plan) {
  const plan = todo.map(({ name, shows, commands, environment: more = {} }) => ({
    name,
    shows,
    commands: commands.map(([program, args]) =>
      [...Object.entries(more).map(([key, value]) => `${key}='${value}'`), program, ...args].join(" "),
    ),
  }));
  if (chosen.json) console.log(JSON.stringify({ gpu: gpu ?? null, architecture, environment, plan }));
  else
    for (const stage of plan) console.log(`${stage.name}: ${stage.shows}\n  ${stage.commands.join("\n  ")}`);
  process.exit(0);
}
if (!gpu) {
  console.error(
    "gpu-check: expected an NVIDIA GPU, found none (nvidia-smi says nothing about device " +
      `${chosen.device}); what needs none is in npm test, and --plan tells what would run here`,
  );
  process.exit(3);
}

const results = todo.map(runStage);
const report = {
  date: new Date().toISOString().slice(0, 10),
  commit: outputOf("git", ["rev-parse", "--short", "HEAD"], { cwd: inRoot() })?.trim() ?? "",
  gpu,
  cores: availableParallelism(),
  nvcc: outputOf("nvcc", ["--version"])?.match(/release [\d.]+/)?.[0] ?? "",
  command: `scripts/gpu-check ${process.argv.slice(2).join(" ")}`.trim(),
  version: JSON.parse(readFileSync(inRoot("package.json"), "utf8")).version,
  stages: results,
};
if (!existsSync(chosen.out)) mkdirSync(chosen.out, { recursive: true });
const base = join(chosen.out, `${report.date}-gpu-${gpu.name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`);
writeFileSync(`${base}.json`, `${JSON.stringify(report, null, 1)}\n`);
writeFileSync(`${base}.md`, writePage(report));
const failed = results.filter(({ state }) => state === "failed");
const passed = results.filter(({ state }) => state === "passed");
console.log(`${base}.md\n${passed.length} passed, ${failed.length} failed`);
process.exit(failed.length > 0 || passed.length === 0 ? 1 : 0);
