// Training of tiny-shapes on one rank and on two, one thread each: the same pictures per rank (weak scaling), what of the communication
// is hidden behind backward, and what a rank holds with each sharding, beside what `danceflux plan` says before. Each training is a `danceflux train` of its own.
import { execFileSync } from "node:child_process";
import { cli, median, stagePace, trainRanks } from "./training.mjs";

const pace = stagePace("total");
const ITERATIONS = 6;
const PROMPTS = 4; // of a rank
const GROUP = 12;

/** What a rank of two takes at most from its device's pool, in bytes, said before anything is loaded. */
function plannedPeak(config) {
  const args = [cli, "plan", config, "--world", "2", "--json"];
  const { peak, outsidePool } = JSON.parse(execFileSync(process.execPath, args, { encoding: "utf8" }));
  return peak - outsidePool;
}

/** Metrics of one training; `distributed` are its options. */
function train(size, { prompts = PROMPTS * size, iterations = ITERATIONS, distributed = {}, look } = {}) {
  const config = {
    preset: "tiny-shapes",
    promptsPerIteration: prompts,
    iterations,
    sampling: { batch: 48 },
    learning: { accumulate: prompts * GROUP, microbatch: 48 },
    evaluation: { every: 0 },
    // The model has 9 MB of gradients: pieces of 1 MiB are to it what those of 25 MiB are to a large one.
    distributed: { bucketMiB: 1, ...distributed },
  };
  return trainRanks(size, config, { variables: { DANCEFLUX_THREADS: "1" }, ...(look ? { look } : {}) });
}

const waited = (iterations) =>
  iterations.slice(1).reduce((sum, { distributed }) => sum + distributed.secondsWaited, 0) /
  (iterations.length - 1);

/** Two ranks with the pictures of one must learn the same, or nothing here means anything. */
async function sameResults() {
  const options = { prompts: 2, iterations: 2, distributed: { collective: "ordered" } };
  const [alone, both] = [await train(1, options), await train(2, options)];
  return alone.every(
    ({ reward, gradientNorm }, i) =>
      reward.mean === both[i].reward.mean && gradientNorm === both[i].gradientNorm,
  );
}

export async function run({ report, repeat }) {
  const checked = await sameResults();
  const paces = { alone: [], both: [], after: [] };
  const waits = { overlapped: [], after: [] };
  for (let i = 0; i < repeat; i++) {
    // In turn, so that what else the machine does falls on both.
    paces.alone.push(pace(await train(1)));
    const both = await train(2);
    paces.both.push(pace(both));
    waits.overlapped.push(waited(both));
    const after = await train(2, { distributed: { overlap: false } });
    paces.after.push(pace(after));
    waits.after.push(waited(after));
  }
  const [alone, both] = [median(paces.alone), median(paces.both)];
  const note = `efficiency ${(alone / both).toFixed(3)}`;
  report({ name: "iteration, 48 pictures a rank", ours: both, theirs: alone, unit: "s", checked, note });
  const [hidden, open] = [median(waits.overlapped), median(waits.after)];
  const share = open > 0 ? `${(100 * (1 - hidden / open)).toFixed(0)} % hidden` : "nothing to wait for";
  report({ name: "waited for gradients", ours: hidden, theirs: open, unit: "s", checked, note: share });
  for (const sharding of ["none", "optimizer", "optimizer+gradients"]) {
    const trained = await train(2, { iterations: 2, distributed: { sharding }, look: plannedPeak });
    const last = trained.at(-1);
    const mib = (bytes) => bytes / 2 ** 20;
    const name = `${sharding}: optimizer state`;
    report({ name, ours: mib(last.memory.optimizer), unit: "MiB", checked });
    report({ name: `${sharding}: gradients`, ours: mib(last.memory.gradients), unit: "MiB", checked });
    const [peak, planned] = [last.memory.peak, trained.looked];
    const off = `the plan says ${(100 * (planned / peak - 1)).toFixed(1)} % ${planned < peak ? "less" : "more"}`;
    report({
      name: `${sharding}: peak, beside the plan`,
      ours: mib(peak),
      theirs: mib(planned),
      unit: "MiB",
      checked,
      note: off.replace("-", ""),
    });
  }
  return checked;
}
