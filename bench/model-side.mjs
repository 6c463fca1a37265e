// Our side of the model bench, in a process of its own: node model-side.mjs FOLDER PART DTYPE. Commands come as lines of JSON, each is
// answered by one: { do: "forward" | "learn" | "pictures" | "iteration", write } leaves outputs in the folder, { ..., repeat } takes times.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { openDevice } from "../dist/device.js";
import { GrpoTrainer } from "../dist/grpo/trainer.js";
import { loadClipFolder } from "../dist/models/clip.js";
import { loadFluxFolder } from "../dist/models/flux.js";
import { isLoraName, loadLora } from "../dist/models/lora.js";
import { loadVaeFolder } from "../dist/models/vae.js";
import { ClipReward } from "../dist/rewards/clip_scorer.js";
import { hpsImageEncoder } from "../dist/rewards/hps.js";
import { readNumbers } from "./peer.mjs";

const WARM = 2;
const LONGEST_ROW = 20;
const FILLED = 0.25;

const [folder, part, dtype] = process.argv.slice(2);
const plan = JSON.parse(readFileSync(join(folder, "plan.json"), "utf8"));
const model = (name) => join(folder, "model", name);
const device = openDevice(plan.device, plan.device === "cpu" ? { threads: plan.threads } : {});
const { model: flux, config } = await loadFluxFolder(device, model("transformer"), dtype);
const upload = (values, shape) => device.handle.upload(values, shape).promise;
const count = (shape) => shape.reduce((product, dim) => product * dim, 1);
/** The first numbers of an array, as many as the shape has. */
const given = (name, shape) => upload(readNumbers(folder, name).slice(0, count(shape)), shape);
const leave = async (name, values) => writeFileSync(join(folder, `${name}.f32`), await values);
const text = await given("text", [1, plan.textLength, config.jointAttentionDim]);
const pooled = await given("pooled", [1, config.pooledProjectionDim]);
const mark = await upload(new Float32Array(1), [1]);

/** Waits until the device has done all that it was asked for. */
const settle = () => mark.download().promise;

/** As timed() of peers/model.py: seconds of samples, each as many runs in a row as fill a quarter of a second. */
async function timed(run, repeat) {
  const times = [];
  let runs = 1;
  for (let i = 0; i < repeat + WARM; i++) {
    await settle();
    const started = performance.now();
    for (let k = 0; k < runs; k++) await run();
    await settle();
    const each = (performance.now() - started) / 1000 / runs;
    if (i >= WARM) times.push(each);
    else if (i === WARM - 1) runs = Math.max(1, Math.min(LONGEST_ROW, Math.round(FILLED / each)));
  }
  return times;
}

const kept = new Map();
/** Latents [B, L, C] of a size; the same numbers whatever the batch. */
async function latents(name, pixels, batch) {
  const key = `${name}-${pixels}`;
  if (!kept.has(`${key} ${batch}`))
    kept.set(`${key} ${batch}`, await given(key, [batch, (pixels / 16) ** 2, config.inChannels]));
  return kept.get(`${key} ${batch}`);
}

async function inputs(pixels, batch) {
  const tensor = await latents("latents", pixels, batch);
  return {
    latents: Array.from({ length: batch }, (_, row) => ({ tensor, row })),
    prompts: Array(batch).fill(0),
    text: [text],
    pooled: [pooled],
    timesteps: Array(batch).fill(plan.step.timestep),
    guidance: Array(batch).fill(plan.guidance),
    gridRows: pixels / 16,
    gridColumns: pixels / 16,
  };
}

async function forward({ pixels, batch, write, repeat }) {
  const asked = await inputs(pixels, batch);
  const once = () => flux.velocity(asked).promise;
  if (!write) return { times: await timed(async () => (await once()).dispose(), repeat) };
  const velocity = await once();
  await leave(`${write}-0`, velocity.download().promise);
  velocity.dispose();
}

let trains;
/** Adapters, or everything. */
async function prepare(kind) {
  if (trains === kind) return;
  if (kind === "lora") await loadLora(flux, config, model("lora.safetensors"));
  const names = flux.parameters().map((entry) => entry.name);
  await flux.setTrainable(kind === "lora" ? names.filter(isLoraName) : names).promise;
  trains = kind;
}

async function learn({ pixels, kind, recompute, write, repeat }) {
  await prepare(kind);
  const next = await latents("target", pixels, 1);
  const step = {
    ...(await inputs(pixels, 1)),
    next: [{ tensor: next, row: 0 }],
    kind: "dance-sde",
    eta: plan.step.eta,
    sigmas: [plan.step.sigma],
    nextSigmas: [plan.step.following],
    clipRange: plan.step.clipRange,
    lossDivisor: 1,
    recomputeBlocks: recompute,
  };
  const once = (old, advantage) =>
    flux.policyStep({ ...step, oldLogProbs: [old], advantages: [advantage] }).promise;
  const first = await once(0, 0);
  const [, logProb] = await first.download().promise;
  first.dispose();
  await flux.zeroGradients().promise;
  const pass = async () => (await once(logProb, 1)).dispose();
  if (!write) return { times: await timed(pass, repeat) };
  await pass();
  for (const [i, name] of plan.watched[kind].entries())
    await leave(`${write}-${i}`, flux.read(name, "gradient").promise);
  await flux.zeroGradients().promise;
}

let judges;
/** The autoencoder and the scorer. */
async function openJudges() {
  judges ??= {
    vae: (await loadVaeFolder(device, model("vae"), dtype)).model,
    clip: await loadClipFolder(device, model("reward"), dtype),
  };
  return judges;
}

async function pictures({ batch, write }) {
  const { vae, clip } = await openJudges();
  const side = plan.trainPixels / 16;
  const images = await vae.decode(await latents("latents", plan.trainPixels, batch), side, side).promise;
  await leave(`${write}-0`, images.download().promise);
  images.dispose();
  const shown = await given("images", [batch, 3, plan.trainPixels, plan.trainPixels]);
  const features = await hpsImageEncoder(clip)({ images: shown });
  await leave(`${write}-1`, features.download().promise);
  for (const tensor of [shown, features]) tensor.dispose();
}

/** A pipeline whose prompts are encoded already. */
const pipeline = ({ vae }) => ({
  device,
  folder: model("transformer"),
  config,
  scheduler: { shift: plan.iteration.shift, useDynamicShifting: false },
  weights: dtype,
  transformer: flux,
  vaeFactor: 8,
  encodePrompts: async () => [
    {
      text: await given("text", text.shape),
      pooled: await given("pooled", pooled.shape),
      [Symbol.dispose]() {
        this.text.dispose();
        this.pooled.dispose();
      },
    },
  ],
  freeTextEncoders() {},
  decode: (packed, rows, columns) => vae.decode(packed, rows, columns).promise,
  dispose() {},
  [Symbol.dispose]() {},
});

/** The second of two iterations of the trainer itself. */
async function iteration({ recompute }) {
  const { clip, ...rest } = await openJudges();
  const tokenizer = { encode: () => Int32Array.from(plan.promptIds) };
  const reward = new ClipReward({
    name: "hps",
    device,
    clip,
    tokenizer,
    encodeImages: hpsImageEncoder(clip),
  });
  const { pictures, batch, accumulate, trained, count: steps, shift, eta } = plan.iteration;
  const { rank, targets } = plan.lora;
  const trainer = new GrpoTrainer({
    pipeline: pipeline(rest),
    reward,
    prompts: ["a picture of the bench"],
    groupSize: pictures,
    iterations: 3,
    seed: 1,
    sampling: { width: plan.trainPixels, height: plan.trainPixels, steps, shift, eta, batch },
    learning: {
      accumulate,
      // the share of the noisy steps, all but the last, that comes to `trained` of them
      timestepFraction: (trained + 0.5) / (steps - 1),
      recompute: recompute === -1 ? "all" : recompute,
      lora: { rank, alpha: rank, targets },
    },
    output: { folder: join(folder, `run-${dtype}`), checkpointEvery: 0, picturesEvery: 0 },
  });
  let last;
  for await (const metrics of trainer.run({ until: 2 })) last = metrics;
  const { rollout, decode, score, update, total } = last.seconds;
  return {
    stages: { rollout, decode, score, update, iteration: total },
    ratio: last.ratio.firstUpdateMaxDeviation,
    transitions: pictures * trained,
  };
}

/** Of the device's own count; on the CPU that of the process, as the other side's can only be. */
function peak() {
  if (plan.device !== "cpu") return device.memory().peak;
  return Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
}

const COMMANDS = { about: async () => ({ device: device.description }), forward, learn, pictures, iteration };

console.log(JSON.stringify({ ready: part }));
for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...command } = JSON.parse(line);
  try {
    await device.handle.trim().promise;
    device.handle.resetPeakMemory();
    console.log(JSON.stringify({ ...(await COMMANDS[name](command)), peak: peak() }));
  } catch (error) {
    if (error.code !== "ERR_MEMORY") throw error;
    console.log(JSON.stringify({ outOfMemory: error.message.split("\n")[0] }));
  }
}
device.dispose();
process.exit(0);
