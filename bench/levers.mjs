// The three levers of a port to NPUs, each varied by itself: pictures that are drawn at once, saving beside the run, and the buffer of the
// collectives. `theirs` is the setting that a port starts from. Pictures do not depend on any of them, so all rewards must be the same.
import { median, stagePace, trainRanks } from "./training.mjs";

const PROMPTS = 4;
const GROUP = 12;
const BATCHES = [1, 4, 12];
const BUFFERS = {
  ascend: ["hccl", "bufferSizeMiB", [200, 100, 400, 800]],
  cuda: ["nccl", "bufferSizeBytes", [4 << 20, 1 << 20, 16 << 20]],
};

const rewardsOf = (iterations) => JSON.stringify(iterations.map(({ reward }) => reward));

export async function run({ report, repeat, threads, device }) {
  const kind = device.split(":")[0];
  const variables = kind === "cpu" ? { DANCEFLUX_THREADS: String(threads) } : {};
  const train = (size, { sampling = {}, output = {}, options = {} } = {}) =>
    trainRanks(
      size,
      {
        preset: "tiny-shapes",
        promptsPerIteration: PROMPTS,
        iterations: 4,
        device: { name: device, ...options },
        sampling: { batch: GROUP, ...sampling },
        learning: { accumulate: PROMPTS * GROUP, microbatch: GROUP },
        evaluation: { every: 0 },
        output,
      },
      { variables },
    );
  let good = true;
  /** One lever: every setting `repeat` times, in turn, so that what else the machine does falls on all. */
  const vary = async (settings, size, measure) => {
    const seen = settings.map(() => ({ seconds: [], rewards: undefined }));
    for (let turn = 0; turn < repeat; turn++)
      for (const [i, { more }] of settings.entries()) {
        const iterations = await train(size, more);
        seen[i].seconds.push(measure(iterations));
        seen[i].rewards = rewardsOf(iterations);
      }
    const theirs = median(seen[0].seconds);
    for (const [i, { name }] of settings.entries()) {
      const checked = seen[i].rewards === seen[0].rewards;
      good &&= checked;
      report({ name, ours: median(seen[i].seconds), theirs, unit: "s", checked });
    }
  };
  const batches = BATCHES.map((batch) => ({
    name: `rollout, batch ${batch}`,
    more: { sampling: { batch } },
  }));
  await vary(batches, 1, stagePace("rollout"));
  const saving = [false, true].map((saveInBackground) => ({
    name: `iteration, saved ${saveInBackground ? "beside the run" : "before scoring"}`,
    more: { output: { picturesEvery: 1, saveInBackground } },
  }));
  await vary(saving, 1, stagePace("total"));
  if (!BUFFERS[kind]) return good; // ranks of one host share memory
  const [engine, option, values] = BUFFERS[kind];
  const buffers = values.map((value) => ({
    name: `iteration of 2 ranks, ${option} ${value}`,
    more: { options: { [engine]: { [option]: value } } },
  }));
  await vary(buffers, 2, stagePace("total"));
  return good;
}
