// node scripts/align-faults.mjs [SEEDS [FIRST]]: plants every fault of the test plugin cpu_faulty, at places that the seed chooses, and tells
// which ones `danceflux align` finds, at which op, and which harmless changes it calls harmless. Needs a build with tests (npm test makes one).
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inRoot } from "./common.mjs";

process.env.DANCEFLUX_PLUGIN_PATH = inRoot("build", "test-plugins");
const { compareDumps, parseSide, readDump, recordRun } = await import(inRoot("dist", "align", "index.js"));
const { loadConfig } = await import(inRoot("dist", "load_config.js"));

const seeds = Number(process.argv[2] ?? 20);
const first = Number(process.argv[3] ?? 1);
const folder = mkdtempSync(join(tmpdir(), "danceflux-faults-"));
const SMALL = [
  "promptsPerIteration=2",
  "groupSize=2",
  "sampling.batch=4",
  "sampling.steps=4",
  "learning.accumulate=4",
  "learning.microbatch=4",
];

/** A place for the fault: a call of the op within the first passes of the transformer. */
const place = (seed, calls) => (seed * 7 + 3) % calls;
const planted = (fault, calls) => (seed) => ({
  side: `cpu_faulty,fault=${fault},after=${place(seed, calls)},inside=flux`,
});
const found = (comparison, truth) => comparison.first?.record.name === truth;

/** Name, what it is, its side, and what counts as found; harmless ones have no such thing. */
const FAULTS = [
  ["rope-half", "half-mode rope in place of interleaved", planted("rope-half", 24), found],
  ["scale-shift", "scale and shift swapped", planted("scale-shift", 20), found],
  ["head-zero", "one attention head zeroed", planted("head-zero", 8), found],
  ["f16-overflow", "values beyond f16", planted("f16-overflow", 10), found],
  ["strided-read", "a strided tensor read as if it were dense", planted("strided-read", 24), found],
  [
    "gelu-backward",
    "gradient of another gelu",
    (seed) => ({ side: `cpu_faulty,fault=gelu-backward,after=${place(seed, 3)}` }),
    ({ first }) => first?.record.role === "gradient" && /\/update\//.test(first.record.stage),
  ],
  [
    "text-length",
    "another text length",
    () => ({ side: "cpu,textLength=8" }),
    ({ first }) => first?.record.stage === "encode" && first.record.name.startsWith("t5"),
  ],
  ["reduction-order", "harmless: sums in another order", planted("reduction-order", 40)],
  ["portable", "harmless: another instruction set", () => ({ side: "cpu,isa=portable" })],
  ["one-thread", "harmless: one thread", () => ({ side: "cpu,threads=1" })],
];

async function recorded(name, config, side) {
  const out = join(folder, name);
  rmSync(out, { recursive: true, force: true });
  await recordRun(config, {
    out,
    level: "op",
    summary: "statistics",
    steps: [0],
    ...(side ? { side: parseSide(side) } : {}),
  });
  return readDump(out);
}

const tally = new Map(
  FAULTS.map(([name]) => [name, { right: 0, wrong: [], pictures: 0, places: new Set() }]),
);
for (let seed = first - 1; seed < first - 1 + seeds; seed++) {
  const config = await loadConfig(inRoot("models", "tiny-shapes", "demo.json"), [
    ...SMALL,
    `seed=${seed + 1}`,
  ]);
  const clean = await recorded("clean", config);
  for (const [name, , make, counts] of FAULTS) {
    const truthFile = join(folder, "truth");
    rmSync(truthFile, { force: true });
    const { side } = make(seed);
    const known = /fault=/.test(side);
    const dump = await recorded("faulty", config, known ? `${side},truth=${truthFile}` : side);
    const truth = known ? readFileSync(truthFile, "utf8").trim() : "";
    const comparison = await compareDumps(dump, clean);
    const right = counts ? !comparison.aligned && counts(comparison, truth) : comparison.aligned;
    const entry = tally.get(name);
    if (right) entry.right++;
    else entry.wrong.push(`seed ${seed}: ${truth}: ${comparison.sentence}`);
    if (comparison.pictures.some(({ differs }) => differs)) entry.pictures++;
    entry.places.add(truth || comparison.first?.record.name || "");
  }
  process.stderr.write(`seed ${seed + 1}\n`);
}
rmSync(folder, { recursive: true, force: true });

console.log(
  `| planted | what | ${"verdict right"} | at how many places | seen in the pictures |\n|---|---|---|---|---|`,
);
for (const [name, what, , counts] of FAULTS) {
  const { right, pictures, places } = tally.get(name);
  const verdict = counts ? `found at the op: ${right} of ${seeds}` : `called harmless: ${right} of ${seeds}`;
  console.log(`| ${name} | ${what} | ${verdict} | ${counts ? places.size : "-"} | ${pictures} of ${seeds} |`);
}
const wrong = [...tally.values()].flatMap((entry) => entry.wrong);
for (const line of wrong) console.error(line);
process.exit(wrong.length > 0 ? 1 : 0);
