// One rank: exchanges round after round until something happens to it. The place comes from the environment.
// node group-child.mjs DIST ACTION CULPRIT
// ACTION is what rank CULPRIT does after two rounds: kill, stop, throw, reject, exit, late, config; none: all end after three rounds.
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [dist, action, culprit] = process.argv.slice(2);
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
};

let group;
try {
  group = await initGroup();
  const { rank, size, localRank, localSize } = group;
  say({ rank, size, localRank, localSize });
  const own = rank === Number(culprit);
  if (action === "config")
    await compareConfigs(group, { seed: own ? 2 : 1, model: { path: "m" }, token: String(rank) });
  for (let round = 0; round < 3; round++) {
    if (own && round === 2) await acts[action]?.();
    const values = await group.exchange(`round ${round}`, rank);
    say({ round, values });
  }
  await group.close();
  say({ done: true });
} catch (error) {
  if (error.message.startsWith("no luck")) throw error;
  say({ error: error.message, code: error.code, failed: group?.failed.reason?.message });
  process.exitCode = 1;
}
