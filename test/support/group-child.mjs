// One rank: exchanges round after round until something happens to it. The place comes from the environment.
// node group-child.mjs DIST ACTION CULPRIT [ENGINE]: with an engine each round sums over all ranks too, on the engine's device
// ACTION is what rank CULPRIT does after two rounds: kill, stop, throw, reject, exit, late, config, hold, absent, killInSum; none: all end after three rounds.
// sumOn: every rank then sums 32 MB again and again, until it fails.
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [dist, action, culprit, engine] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(join(dist, path)).href);
const { initGroup } = await load("distributed/group.js");
const { compareConfigs } = await load("distributed/compare.js");

const say = (what) => console.log(JSON.stringify(what));
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

const acts = {
  kill: () => process.kill(process.pid, "SIGKILL"),
  stop: () => process.kill(process.pid, "SIGSTOP"),
  throw: () => {
    setTimeout(() => {
      throw new Error("no luck");
    });
    return wait(5000);
  },
  reject: () => {
    throw new Error("no luck either");
  },
  exit: () => process.exit(7),
  late: () => wait(4000),
  hold: () => wait(60_000),
  // Alive, and yet not there when the others compute.
  absent: async () => {
    await group.exchange("round 2", 0);
    await wait(60_000);
  },
  killInSum: async () => {
    await group.exchange("round 2", 0);
    process.kill(process.pid, "SIGKILL");
  },
};

async function sumOn() {
  const tensor = await device.handle.upload(new Float32Array(8e6), [8e6]).promise;
  say({ summing: true });
  for (;;) await group.communicator.allReduce(tensor, { op: "sum", ordered: false }).promise;
}

let group;
const place = engine === "hccl" ? ["ascend"] : ["cpu", { threads: 1 }];
const device = engine && (await load("device.js")).openDevice(...place);
/** Sum over all ranks of this rank's number plus one. */
async function sum(rank) {
  const tensor = await device.handle.upload(new Float32Array([rank + 1, 10]), [2]).promise;
  await group.communicator.allReduce(tensor, { op: "sum", ordered: true }).promise;
  const values = await tensor.download().promise;
  tensor.dispose();
  return [...values];
}
try {
  group = await initGroup({ ...(device ? { device, engine } : {}) });
  const { rank, size, localRank, localSize } = group;
  say({ rank, size, localRank, localSize });
  const own = rank === Number(culprit);
  if (action === "config")
    await compareConfigs(group, { seed: own ? 2 : 1, model: { path: "m" }, token: String(rank) });
  for (let round = 0; round < 3; round++) {
    if (own && round === 2) await acts[action]?.();
    if (action === "sumOn" && round === 2) await sumOn();
    const values = await group.exchange(`round ${round}`, rank);
    say({ round, values, ...(device ? { sum: await sum(rank) } : {}) });
  }
  await group.close();
  device?.dispose();
  say({ done: true });
} catch (error) {
  if (error.message.startsWith("no luck")) throw error;
  say({ error: error.message, code: error.code, failed: group?.failed.reason?.message });
  group?.abort(error.message);
  await group?.close();
  device?.dispose();
  process.exitCode = 1;
}
