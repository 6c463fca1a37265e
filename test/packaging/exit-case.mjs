// exit-case.mjs CASE: one way for a process, or a worker, to end while jobs are under way. Run by exit-paths.test.ts on dist/.
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { native } from "../../dist/native.js";

const key = { seed: 1n, iteration: 0, prompt: 0, sample: 0, timestep: 0, purpose: 0 };

/** Minutes of work, queued. Resolves once the first job is surely under way. */
async function keepBusy() {
  const device = native().openDevice("cpu", '{"threads": 1}');
  await device.noise([key], [16]).promise;
  for (let i = 0; i < 400; i++) device.noise([key], [4096, 2048]).promise.catch(() => {});
  await new Promise((done) => setTimeout(done, 100));
  return device;
}

async function compute() {
  const device = native().openDevice("cpu", '{"threads": 1}');
  for (let i = 0; i < 20; i++) {
    const noise = await device.noise([{ ...key, sample: i }], [64, 64]).promise;
    const values = await noise.download().promise;
    if (values.length !== 4096 || !values.every(Number.isFinite)) throw new Error("wrong numbers");
    noise.dispose();
  }
  device.dispose();
}

const workers = {
  busy: keepBusy,
  exit: async () => {
    await keepBusy();
    process.exit(3);
  },
  throw: async () => {
    await keepBusy();
    throw new Error("on purpose");
  },
  compute,
};

/** Starts a worker; resolves with its exit status. `until` resolves when it says that it is busy. */
function startWorker(what) {
  const worker = new Worker(new URL(import.meta.url), { workerData: what });
  const ended = new Promise((done) => worker.on("exit", done));
  worker.on("error", () => {}); // the status tells
  const busy = new Promise((done) => worker.on("message", done));
  return { worker, ended, busy };
}

const cases = {
  drain: async () => {
    await compute();
    console.log("done");
  },
  exit: async () => {
    await keepBusy();
    process.exit(7);
  },
  throw: async () => {
    await keepBusy();
    throw new Error("on purpose");
  },
  dispose: async () => {
    const device = await keepBusy();
    native().shutdown();
    native().shutdown();
    device.dispose();
    console.log("done");
  },
  abort: async () => {
    const device = native().openDevice("cpu", '{"threads": 1}');
    const jobs = Array.from({ length: 50 }, () => device.noise([key], [4096, 2048]));
    const results = Promise.allSettled(jobs.map((job) => job.promise));
    for (const job of jobs) job.abort();
    const codes = new Set((await results).map((result) => result.reason?.code ?? "done"));
    console.log([...codes].sort().join(" "));
    native().shutdown();
  },
  "worker-terminate": async () => {
    const { worker, busy } = startWorker("busy");
    await busy;
    await worker.terminate();
    await compute();
    console.log("done");
  },
  "worker-exit": async () => {
    console.log(await startWorker("exit").ended);
    await compute();
  },
  "worker-throw": async () => {
    console.log(await startWorker("throw").ended);
    await compute();
  },
  "three-environments": async () => {
    const ends = [startWorker("compute").ended, startWorker("compute").ended];
    await compute();
    console.log((await Promise.all(ends)).join(" "));
  },
};

if (isMainThread) await cases[process.argv[2]]();
else {
  await workers[workerData]();
  parentPort.postMessage("busy");
}
