// smoke.mjs ADDON.node: the least that a binary must do on a machine. Plain JavaScript on the bare addon, so that it runs under any Node,
// and under an emulator. Prints one line and ends with status 0, or throws.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { isMainThread, Worker, workerData } from "node:worker_threads";

const path = isMainThread ? resolve(process.argv[2]) : workerData;
const addon = createRequire(import.meta.url)(path);

async function compute(threads) {
  const device = addon.openDevice("cpu", JSON.stringify({ threads }));
  const key = { seed: 7n, iteration: 1, prompt: 2, sample: 3, timestep: 4, purpose: 0 };
  const noise = await device.noise([key], [6, 5]).promise;
  const values = await noise.download().promise;
  assert.equal(values.length, 30);
  assert.deepEqual([...values], [...addon.keyedNormal(key, 30)]);
  const there = await device.upload(
    Float32Array.from({ length: 12 }, (_, i) => i),
    [3, 4],
  ).promise;
  assert.deepEqual(there.shape, [3, 4]);
  assert.deepEqual([...(await there.download().promise)].slice(0, 3), [0, 1, 2]);
  there.dispose();
  noise.dispose();
  device.dispose();
  return Array.from(values);
}

function coded(code, action) {
  assert.throws(
    action,
    (error) => error.code === code || assert.fail(`expected ${code}, got ${error.code}: ${error.message}`),
  );
}

const values = await compute(isMainThread ? 2 : 1);
if (isMainThread) {
  // exceptions that were thrown in the engine arrive with their code
  coded("ERR_DEVICE", () => addon.openDevice("cpu:9", "{}"));
  coded("ERR_OPTION", () => addon.openDevice("cpu", '{"thread": 1}'));
  coded("ERR_FILE", () => addon.inspectFile("/nowhere.safetensors"));
  const cpu = addon.probeBackends().find((report) => report.name === "cpu");
  assert.equal(cpu.state, "READY");
  const worker = new Worker(new URL(import.meta.url), { workerData: path });
  const code = await new Promise((done, failed) => worker.on("exit", done).on("error", failed));
  assert.equal(code, 0);
  addon.shutdown();
  console.log(
    `smoke: ok on ${process.platform}-${process.arch}, Node ${process.versions.node}, ${cpu.message}, first normal ${values[0]}`,
  );
}
