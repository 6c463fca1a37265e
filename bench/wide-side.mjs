// Our side of the wide comparison, in a process of its own so that its peak memory is its own:
// node wide-side.mjs MODEL FOLDER DTYPE THREADS REPEAT SIDE; prints one line of JSON.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openDevice } from "../dist/device.js";
import { forwardFlops } from "../dist/grpo/cost.js";
import { loadFluxFolder } from "../dist/models/flux.js";
import { networkGuidance, networkTimestep } from "../dist/sample/schedule.js";
import { seconds } from "./peer.mjs";
import { TEXT_LENGTH, WATCHED } from "./wide.mjs";

const [model, folder, dtype, threads, repeat, side, cpuTime] = process.argv.slice(2);
const grid = Number(side) / 16;
const device = openDevice("cpu", { threads: Number(threads) });
const { model: flux, config } = await loadFluxFolder(device, model, dtype);
const read = (name) => {
  const bytes = readFileSync(join(folder, `${name}.f32`));
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
};
const upload = (name, shape) => device.handle.upload(read(name), shape).promise;
const latents = await upload("latents", [1, grid * grid, 64]);
const inputs = {
  latents: [{ tensor: latents, row: 0 }],
  prompts: [0],
  text: [await upload("text", [1, TEXT_LENGTH, 4096])],
  pooled: [await upload("pooled", [1, 768])],
  timesteps: [networkTimestep(0.7, { integer: false, bf16: false })],
  guidance: [networkGuidance(3.5, false)],
  gridRows: grid,
  gridColumns: grid,
};
const peak = () => Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
const times = { forward: [], backward: [] };
const timed = async (list, work) => {
  let result;
  const taken = await seconds(async () => {
    result = await work();
  }, cpuTime === "true");
  list.push(taken);
  return result;
};
const result = { flops: forwardFlops(config, grid * grid, TEXT_LENGTH) };
for (let i = 0; i <= repeat; i++) {
  // The first turn warms up and is not counted.
  const velocity = await timed(i ? times.forward : [], () => flux.velocity(inputs).promise);
  writeFileSync(join(folder, `ours-velocity-${dtype}.f32`), await velocity.download().promise);
  velocity.dispose();
}
result.forwardPeak = peak();
const names = flux.parameters().map((entry) => entry.name);
await flux.setTrainable(names).promise;
const dVelocity = await upload("d_velocity", [1, grid * grid, 64]);
for (let i = 0; i <= repeat; i++) {
  await flux.zeroGradients().promise;
  const made = await timed(
    i ? times.backward : [],
    () => flux.velocityGradient(inputs, dVelocity, 0).promise,
  );
  for (const tensor of Object.values(made)) tensor.dispose();
}
writeFileSync(join(folder, `ours-gradient-${dtype}.f32`), await flux.read(WATCHED, "gradient").promise);
result.backwardPeak = peak();
result.times = times;
console.log(JSON.stringify(result));
device.dispose();
