// One GRPO iteration of tiny-shapes: 4 groups of 12 pictures, 16 steps, 9 of 15 transitions learned from; the same in eager PyTorch.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openDevice } from "../dist/device.js";
import { loadClipFolder } from "../dist/models/clip.js";
import { loadPipeline } from "../dist/models/pipeline.js";
import { batches, sampleBatch, samplePlan } from "../dist/sample/sampler.js";
import { networkGuidance, networkTimestep } from "../dist/sample/schedule.js";
import { ClipTokenizer } from "../dist/text/index.js";
import { alternate, formula, relativeError, seconds, startPeer } from "./peer.mjs";

const model = fileURLToPath(new URL("../models/tiny-shapes", import.meta.url));
const BATCH = 12;
const BATCHES = 4;
const MICROBATCHES = (BATCH * BATCHES * 9) / BATCH;
const STEPS = 16;
const ETA = 0.3;
const SIZE = 64;
const TRAINABLE = /transformer_blocks.*(attn\.(to|add)|ff|proj).*weight/;
// f32 sums in another order; a difference beyond this is a mistake, not rounding.
const AGREE = 1e-4;

export const CLIP = {
  size: SIZE,
  mode: "short-crop",
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
  quantize: true,
};

/** Everything that the stages need, on our side. */
export async function openOurs(threads) {
  const device = openDevice("cpu", { threads });
  const pipeline = await loadPipeline(model, { device, dtype: "f32" });
  const clip = await loadClipFolder(device, join(model, "reward"), "f32");
  const tokenizer = await ClipTokenizer.load(join(model, "reward"));
  const prompt = readFileSync(join(model, "prompts-heldout.txt"), "utf8").split("\n")[0];
  const [embedding] = await pipeline.encodePrompts([prompt]);
  const trainable = pipeline.transformer
    .parameters()
    .map((entry) => entry.name)
    .filter((name) => TRAINABLE.test(name));
  await pipeline.transformer.setTrainable(trainable).promise;
  const optimizer = device.handle.createOptimizer(pipeline.transformer, {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weightDecay: 1e-4,
    emaDecay: 0,
  });
  await optimizer.prepare().promise;
  const plan = samplePlan(pipeline, {
    width: SIZE,
    height: SIZE,
    steps: STEPS,
    shift: 3,
    kind: "dance-sde",
    eta: ETA,
    guidance: 3.5,
    integerTimesteps: true,
  });
  const shape = [BATCH, plan.grid.rows * plan.grid.columns, pipeline.config.inChannels];
  const count = shape.reduce((product, dim) => product * dim, 1);
  const host = {
    noise: formula(count, 1, 1.7),
    target: formula(count, 2, 1.7),
    advantages: formula(BATCH, 3, 1),
  };
  const noise = await device.handle.upload(host.noise, shape).promise;
  const target = await device.handle.upload(host.target, shape).promise;
  return {
    device,
    pipeline,
    clip,
    ids: tokenizer.encode(prompt),
    embedding,
    trainable,
    optimizer,
    plan,
    host,
    noise,
    target,
  };
}

const inputsOf = (ours, latents) => ({
  latents: Array.from({ length: BATCH }, (_, row) => ({ tensor: latents, row })),
  prompts: Array(BATCH).fill(0),
  text: [ours.embedding.text],
  pooled: [ours.embedding.pooled],
  guidance: Array(BATCH).fill(networkGuidance(3.5, false)),
  gridRows: ours.plan.grid.rows,
  gridColumns: ours.plan.grid.columns,
});

async function euler(ours) {
  let latents = ours.noise;
  for (let step = 0; step < STEPS; step++) {
    const fill = (value) => Array(BATCH).fill(value);
    const next = await ours.pipeline.transformer.sampleStep({
      ...inputsOf(ours, latents),
      timesteps: fill(networkTimestep(ours.plan.sigmas[step], { integer: true, bf16: false })),
      kind: "ode",
      eta: 0,
      sigmas: fill(ours.plan.sigmas[step]),
      nextSigmas: fill(ours.plan.sigmas[step + 1]),
      denoised: false,
    }).promise;
    latents = next.latents;
  }
  return latents;
}

async function rollout(ours) {
  const row = {
    embedding: ours.embedding,
    stepNoise: (step) => ({ seed: 1n, iteration: 0, prompt: 0, sample: 0, timestep: step, purpose: 1 }),
  };
  for (let batch = 0; batch < BATCHES; batch++) {
    const rows = Array.from({ length: BATCH }, (_, sample) => ({
      ...row,
      initial: { seed: 1n, iteration: batch, prompt: 0, sample, timestep: 0, purpose: 0 },
    }));
    (await sampleBatch(ours.pipeline, ours.plan, rows, { keep: true }))[Symbol.dispose]();
  }
}

async function score(ours, images) {
  const features = await ours.clip.model.encodeImages(images, CLIP).promise;
  const text = await ours.clip.model.encode(ours.ids, 1).promise;
  const scores = await ours.clip.model.cosine(features, text.projected, Array(BATCH).fill(0)).promise;
  for (const tensor of [features, ...Object.values(text)]) tensor.dispose();
  return scores;
}

// The transition that all microbatches learn from: one in the middle of the schedule.
const LEARNED = 6;

async function learn(ours, microbatches) {
  const fill = (value) => Array(BATCH).fill(value);
  const step = {
    ...inputsOf(ours, ours.noise),
    timesteps: fill(networkTimestep(ours.plan.sigmas[LEARNED], { integer: true, bf16: false })),
    kind: "dance-sde",
    eta: ETA,
    sigmas: fill(ours.plan.sigmas[LEARNED]),
    nextSigmas: fill(ours.plan.sigmas[LEARNED + 1]),
    next: Array.from({ length: BATCH }, (_, row) => ({ tensor: ours.target, row })),
    advantages: [...ours.host.advantages],
    clipRange: 1e-3,
    lossDivisor: BATCH * microbatches,
    recomputeBlocks: 0,
  };
  const learnOnce = async (oldLogProbs, more = {}) => {
    const numbers = await ours.pipeline.transformer.policyStep({ ...step, oldLogProbs, ...more }).promise;
    const [, logProbs] = batches([...(await numbers.download().promise)], BATCH);
    numbers.dispose();
    return logProbs;
  };
  const oldLogProbs = await learnOnce(fill(0), { advantages: fill(0) });
  for (let i = 0; i < microbatches; i++) await learnOnce(oldLogProbs);
  return ours.optimizer.step(1e-9, 1).promise;
}

async function check(ours, peer) {
  const sigmas = [...ours.plan.sigmas];
  const timesteps = sigmas
    .slice(0, -1)
    .map((sigma) => networkTimestep(sigma, { integer: true, bf16: false }));
  const shared = { sigmas, timesteps, eta: ETA };
  await peer.ask(
    {
      do: "setup",
      grid: [ours.plan.grid.rows, ours.plan.grid.columns],
      text_length: ours.embedding.text.shape[1],
      trainable: ours.trainable,
    },
    {
      ...ours.host,
      text: await ours.embedding.text.download().promise,
      pooled: await ours.embedding.pooled.download().promise,
    },
  );
  await peer.ask({ do: "rollout", batch: BATCH, batches: 1, ...shared, noisy: false });
  const latents = await euler(ours);
  const errors = { rollout: relativeError(await latents.download().promise, peer.read("latents")) };
  await peer.ask({ do: "decode", batches: 1 });
  const images = await ours.pipeline.decode(latents, ours.plan.grid.rows, ours.plan.grid.columns);
  errors.decode = relativeError(await images.download().promise, peer.read("images"));
  const { scores } = await peer.ask({ do: "score", batches: 1, ids: [...ours.ids], size: SIZE });
  errors.score = relativeError(await score(ours, images), scores);
  const { gradientNorm } = await peer.ask({
    do: "update",
    microbatches: 1,
    batch: BATCH,
    timestep: timesteps[LEARNED],
    sigma: sigmas[LEARNED],
    following: sigmas[LEARNED + 1],
    eta: ETA,
  });
  const ourNorm = (await learn(ours, 1)).gradientNorm;
  errors.update = Math.abs(ourNorm - gradientNorm) / gradientNorm;
  return { errors, images, latents, shared };
}

export async function run({ report, threads, repeat, cpuTime }) {
  const ours = await openOurs(threads);
  const peer = await startPeer(fileURLToPath(new URL("peers/tiny_step.py", import.meta.url)), [
    threads,
    model,
  ]);
  const checked = peer
    ? await check(ours, peer)
    : { errors: {}, images: undefined, latents: await euler(ours) };
  const images =
    checked.images ??
    (await ours.pipeline.decode(checked.latents, ours.plan.grid.rows, ours.plan.grid.columns));
  const { sigmas, timesteps } = checked.shared ?? {};
  const times = (count, work) => async () => {
    for (let i = 0; i < count; i++) await work();
  };
  const decodeOnce = async () =>
    (await ours.pipeline.decode(checked.latents, ours.plan.grid.rows, ours.plan.grid.columns)).dispose();
  const learned = {
    batch: BATCH,
    timestep: timesteps?.[LEARNED],
    sigma: sigmas?.[LEARNED],
    following: sigmas?.[LEARNED + 1],
    eta: ETA,
  };
  const stages = {
    rollout: [
      () => rollout(ours),
      { do: "rollout", batch: BATCH, batches: BATCHES, ...checked.shared, noisy: true },
    ],
    decode: [times(BATCHES, decodeOnce), { do: "decode", batches: BATCHES }],
    score: [
      times(BATCHES, () => score(ours, images)),
      { do: "score", batches: BATCHES, ids: [...ours.ids], size: SIZE },
    ],
    update: [() => learn(ours, MICROBATCHES), { do: "update", microbatches: MICROBATCHES, ...learned }],
  };
  let good = true;
  const sum = { ours: 0, theirs: peer ? 0 : null };
  for (const [name, [work, command]] of Object.entries(stages)) {
    const result = await alternate(
      repeat,
      () => seconds(work, cpuTime),
      peer && (async () => (await peer.ask(command))[cpuTime ? "cpuSeconds" : "seconds"]),
    );
    const agreed = peer ? checked.errors[name] <= AGREE : false;
    good &&= agreed || !peer;
    report({
      name: `step/${name}`,
      ...result,
      unit: cpuTime ? "CPU s" : "s",
      checked: agreed,
      note: peer && `difference ${checked.errors[name].toExponential(1)}`,
    });
    sum.ours += result.ours;
    if (peer) sum.theirs += result.theirs;
  }
  report({ name: "step/iteration", ...sum, unit: cpuTime ? "CPU s" : "s", checked: good && Boolean(peer) });
  await peer?.end();
  ours.device.dispose();
  return good;
}
