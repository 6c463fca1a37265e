// FLUX at its real size beside PyTorch on the same device: forward passes, LoRA and full-width training passes, and one whole GRPO iteration
// with LoRA. Weights are random, made on the device by the peer and read by both sides; each part of each side runs in a process of its own,
// one after the other, so that 80 GB do. Outputs are compared first, and what disagrees is not timed.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { roundToBf16, sigmaSchedule } from "../dist/sample/schedule.js";
import { agrees, aimOf, metAim, modelFlops, planOf, tokensOf } from "./model-plan.mjs";
import { formula, median, readNumbers, relativeError, runPeer, startSide } from "./peer.mjs";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

/** The plan and what goes into the networks: numbers that bf16 holds, so that no side rounds them. */
function writeInputs(folder, plan) {
  const { transformer, textLength, trainPixels, pixels, batches } = plan;
  const rows = Math.max(...batches);
  const put = (name, length, seed, scale) =>
    writeFileSync(join(folder, `${name}.f32`), formula(length, seed, scale).map(roundToBf16));
  put("text", textLength * transformer.joint_attention_dim, 2, 0.4);
  put("pooled", transformer.pooled_projection_dim, 3, 1);
  for (const side of new Set([...pixels, trainPixels]))
    put(`latents-${side}`, rows * tokensOf(side) * transformer.in_channels, 1, 1.7);
  put(`target-${trainPixels}`, tokensOf(trainPixels) * transformer.in_channels, 4, 1.7);
  put("images", rows * 3 * trainPixels ** 2, 5, 1);
  const { count, shift } = plan.iteration;
  const levels = [...sigmaSchedule(count, shift, tokensOf(trainPixels))];
  const { eta, clipRange } = plan.step;
  plan.iteration.steps = levels.slice(0, -1).map((sigma, i) => ({
    ...{ sigma, following: levels[i + 1], timestep: Math.trunc(sigma * 1000), eta, clipRange },
  }));
  writeFileSync(join(folder, "plan.json"), JSON.stringify(plan));
}

const sides = {
  ours: ({ folder, dtype }, part) =>
    startSide(process.execPath, [here("model-side.mjs"), folder, part, dtype]),
  theirs: ({ folder, dtype }, part) =>
    startSide(process.env.DANCEFLUX_PYTHON, [here("peers/model.py"), folder, part, dtype]),
};

/** Relative errors of a pass's outputs to the reference, each beside that of eager PyTorch. */
function errorsOf({ folder, dtype }, tag, { id, outputs }) {
  return Array.from({ length: outputs }, (_, i) => {
    const [made, reference, torch] = [tag, "reference", `torch-${dtype}`].map((whose) =>
      readNumbers(folder, `${whose}-${id}-${i}`),
    );
    const [error, yardstick] = [relativeError(made, reference), relativeError(torch, reference)];
    return { error, yardstick, good: agrees(dtype, error, yardstick) };
  });
}

/** Outputs first; then, if they agree, times. */
async function measurePass(context, side, who, pass, more = {}) {
  const { dtype, repeat } = context;
  const tag = `${who}-${dtype}`;
  const command = { do: pass.do, ...pass.sizes, ...more };
  const made = await side.ask({ ...command, write: `${tag}-${pass.id}` });
  if (made.outOfMemory ?? made.failed) return made;
  const errors = errorsOf(context, tag, pass);
  const good = errors.every((entry) => entry.good);
  if (!good || pass.untimed) return { errors, good };
  const timed = await side.ask({ ...command, repeat });
  if (timed.outOfMemory ?? timed.failed) return timed;
  return { errors, good, seconds: median(timed.times), peak: timed.peak, ...more };
}

/** The first number of recomputed blocks that fits. */
async function measureFitting(context, side, who, pass, more = {}) {
  let last;
  for (const recompute of pass.recompute ?? [undefined]) {
    last = await measurePass(
      context,
      side,
      who,
      pass,
      recompute === undefined ? more : { ...more, recompute },
    );
    if (last.outOfMemory === undefined) return last;
  }
  return last;
}

/** Every pass of a part: ours, and PyTorch's variants with the fastest of them. */
async function measurePart(context, part, passes) {
  const ours = [];
  const side = await sides.ours(context, part);
  for (const pass of passes) ours.push(await measureFitting(context, side, "ours", pass));
  await side.end();
  const peer = await sides.theirs(context, part);
  const about = await peer.ask({ do: "about" });
  const theirs = passes.map(() => ({ about, tried: {} }));
  for (const variant of context.variants) {
    for (const [i, pass] of passes.entries())
      theirs[i].tried[variant] = await measureFitting(context, peer, "theirs", pass, { variant });
  }
  await peer.end();
  for (const entry of theirs)
    entry.best = Object.values(entry.tried)
      .filter(({ seconds }) => seconds !== undefined)
      .sort((a, b) => a.seconds - b.seconds)[0];
  return passes.map((pass, i) => ({ pass, ours: ours[i], theirs: theirs[i] }));
}

const short = (error) => error.toExponential(1);
const told = ({ outOfMemory, failed, good, seconds }) => {
  if (outOfMemory) return `does not fit (${outOfMemory})`;
  if (failed) return failed;
  return good ? `${(seconds * 1e3).toPrecision(4)} ms` : "disagrees";
};

function recomputed({ recompute } = {}) {
  if (recompute === undefined) return "";
  return recompute === -1 ? "all recomputed" : `${recompute} blocks recomputed`;
}

function noteOf(ours, { about, best, tried }) {
  const worst = [...(ours.errors ?? [])].sort((a, b) => b.error / b.yardstick - a.error / a.yardstick)[0];
  const torch = Object.entries(tried).map(([name, result]) => `${name} ${told(result)}`);
  const recompute = [recomputed(ours), recomputed(best)];
  return [
    ours.outOfMemory && `ours does not fit: ${ours.outOfMemory}`,
    ours.failed,
    worst && `error ${short(worst.error)}, PyTorch ${short(worst.yardstick)}`,
    recompute[0] &&
      `${recompute[0]}${recompute[1] && recompute[1] !== recompute[0] ? `, PyTorch ${recompute[1]}` : ""}`,
    `PyTorch ${about.torch}, attention ${about.attention}: ${torch.join(", ")}`,
  ]
    .filter(Boolean)
    .join("; ");
}

/** A row of a pass. Answers whether ours was right, or did not fit. */
function reportPass({ plan, dtype, report }, { pass, ours, theirs }) {
  const { kind, pixels, batch = 1 } = pass;
  const flops = modelFlops(plan, kind, pixels, batch);
  const numbers = (side) => ({
    ms: side?.seconds === undefined ? null : side.seconds * 1e3,
    rate: side?.seconds === undefined ? null : flops / side.seconds / 1e12,
    peak: side?.peak === undefined ? null : side.peak / 2 ** 30,
  });
  const [mine, other] = [numbers(ours), numbers(theirs.best)];
  const { aim } = aimOf(plan, kind, pixels, batch);
  report({
    name: `model/${pass.label} ${dtype}`,
    ours: mine.ms,
    theirs: other.ms,
    unit: "ms",
    checked: ours.good === true,
    rate: { ours: mine.rate, theirs: other.rate },
    peak: { ours: mine.peak, theirs: other.peak },
    ...(aim && mine.ms !== null ? { aim: { ...aim, met: metAim(aim, mine) } } : {}),
    note: noteOf(ours, theirs),
  });
  return ours.good !== false;
}

const forwardPass = (pixels, batch) => ({
  ...{ do: "forward", kind: "forward", pixels, batch, outputs: 1 },
  ...{
    label: `forward ${pixels} px, batch ${batch}`,
    id: `forward-${pixels}-${batch}`,
    sizes: { pixels, batch },
  },
});

const learnPass = ({ trainPixels: pixels, watched, recompute }, kind, label) => ({
  ...{ do: "learn", kind, pixels, id: kind, outputs: watched[kind].length, recompute },
  ...{ label: `${label} ${pixels} px`, sizes: { pixels, kind } },
});

/** An iteration on one side, with as many blocks recomputed as it takes to fit; a process each time, for a run that broke off leaves things. */
async function measureIteration(context, who, { from = 0, ...more }) {
  const { plan, dtype } = context;
  const { batch } = plan.iteration;
  const shown = { do: "pictures", id: "pictures", outputs: 2, sizes: { batch }, untimed: true };
  const sampled = { ...forwardPass(plan.trainPixels, batch), untimed: true };
  let last;
  for (const recompute of plan.recompute.slice(plan.recompute.indexOf(from))) {
    const side = await sides[who](context, "iteration");
    const forward = await measurePass(context, side, who, sampled);
    const pictures = await measurePass(context, side, who, shown);
    last = await side.ask({ do: "iteration", recompute, ...more });
    await side.end();
    const good = {
      rollout: forward.good,
      decode: pictures.errors?.[0].good,
      score: pictures.errors?.[1].good,
    };
    if (last.outOfMemory === undefined) return { ...last, recompute, good, errors: pictures.errors };
  }
  return { ...last, dtype };
}

async function iteration(context, lora) {
  const { plan, dtype, report } = context;
  const ours = await measureIteration(context, "ours", { from: lora.ours.recompute });
  const { recompute: from, variant = "eager" } = lora.theirs.best ?? {};
  const theirs = await measureIteration(context, "theirs", { from, variant });
  const good = { ...ours.good, update: lora.ours.good === true };
  good.iteration = ["rollout", "decode", "score", "update"].every((stage) => good[stage]);
  const failed = ours.outOfMemory && `ours does not fit: ${ours.outOfMemory}`;
  const notes = {
    rollout: `batches of ${plan.iteration.batch}`,
    decode: ours.errors && `error ${short(ours.errors[0].error)}`,
    score: ours.errors && `error ${short(ours.errors[1].error)}`,
    update: `${recomputed(ours)}; ratio before the first update 1 +- ${ours.ratio}`,
    iteration: `PyTorch: transformer ${variant}, the rest eager${recomputed(theirs) && `, ${recomputed(theirs)}`}`,
  };
  const { floor } = aimOf(plan, "iteration");
  for (const stage of Object.keys(notes)) {
    const whole = stage === "iteration";
    report({
      name: `model/iteration${whole ? "" : `, ${stage}`} ${dtype}`,
      ours: good[stage] ? (ours.stages?.[stage] ?? null) : null,
      theirs: theirs.stages?.[stage] ?? null,
      unit: "s",
      checked: good[stage] === true,
      ...(whole && { peak: { ours: ours.peak / 2 ** 30, theirs: theirs.peak / 2 ** 30 } }),
      ...(whole && floor && { floor }),
      note: failed || (theirs.outOfMemory ? `PyTorch does not fit: ${theirs.outOfMemory}` : notes[stage]),
    });
  }
  return ours.stages === undefined || good.iteration;
}

async function measureDType(context) {
  const { plan } = context;
  const { parts, pixels, batches } = plan;
  let good = true;
  let lora;
  for (const part of parts) {
    if (part === "iteration") {
      good = (await iteration(context, lora)) && good;
      continue;
    }
    const passes =
      part === "forward"
        ? pixels.flatMap((side) => batches.map((batch) => forwardPass(side, batch)))
        : [learnPass(plan, part, part === "lora" ? "LoRA forward+backward" : "full forward+backward")];
    const results = await measurePart(context, part, passes);
    for (const result of results) good = reportPass(context, result) && good;
    if (part === "lora") [lora] = results;
  }
  return good;
}

export async function run({ report, repeat, torch = "eager,compiled", ...options }) {
  const plan = planOf(options);
  if (!process.env.DANCEFLUX_PYTHON)
    throw new Error(
      "model: PyTorch makes the weights: set DANCEFLUX_PYTHON to a Python with torch and transformers",
    );
  const folder = mkdtempSync(join(process.env.DANCEFLUX_BENCH_FOLDER ?? tmpdir(), "danceflux-model-"));
  let good = true;
  try {
    writeInputs(folder, plan);
    runPeer(here("peers/model_make.py"), [folder]);
    for (const dtype of plan.dtypes) {
      const context = { plan, folder, dtype, repeat, report, variants: torch.split(",") };
      good = (await measureDType(context)) && good;
    }
    return good;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
