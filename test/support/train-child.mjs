// A process that trains a small pipeline and tells after each iteration; the resume test kills it.
// node train-child.mjs DIST MODEL RUN_FOLDER ITERATIONS
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [dist, model, folder, iterations] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(join(dist, path)).href);
const { openDevice } = await load("device.js");
const { loadPipeline } = await load("models/pipeline.js");
const { GrpoTrainer } = await load("grpo/trainer.js");

const brightness = {
  name: "brightness",
  score: async ({ pictures }) =>
    (await pictures()).map(({ data }) => data.reduce((sum, byte) => sum + byte, 0) / data.length / 255),
};

const device = openDevice("cpu", { threads: 2 });
const pipeline = await loadPipeline(model, { device, dtype: "f32" });
const trainer = new GrpoTrainer({
  pipeline,
  reward: brightness,
  prompts: ["a bad cab", "fig", "lemon", "plum", "melon"],
  promptsPerIteration: 2,
  groupSize: 4,
  iterations: Number(iterations),
  sampling: { width: 24, height: 16, steps: 4, batch: 3 },
  learning: { learningRate: 1e-3, accumulate: 4, microbatch: 2, emaDecay: 0.9 },
  evaluation: { every: 2, prompts: ["peach"], steps: 2 },
  output: { folder, checkpointEvery: 1, keep: 2 },
});
for await (const { iteration, reward } of trainer.run())
  console.log(JSON.stringify({ iteration, reward: reward.mean }));
pipeline.dispose();
device.dispose();
