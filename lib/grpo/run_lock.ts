/**
 * A lock against two processes in one run folder: the file `lock`, made exclusively, which names its holder.
 *
 * A process that was killed leaves its lock behind. On the same machine the kernel tells whether the holder still runs (number and start
 * time of the process, since numbers come again). Where it cannot be asked - another machine, another container - the holder shows that it
 * lives by touching the file; one that does not is gone.
 */
import { randomUUID } from "node:crypto";
import { rmSync } from "node:fs";
import { readFile, readlink, rm, stat, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { DanceError } from "../errors.js";

export const LOCK = "lock";

/** How often a holder touches its lock, and how long others watch for it. */
export const LOCK_TIMES = { touchMs: 3000, watchMs: 10_000 };

const STALE_RIGHT_MS = 60_000;
/** Each ends with a lock, a refusal, or a dead lock less; rivals cost some. */
const ROUNDS = 100;

/** Who holds a lock. */
interface Holder {
  /** Tells this lock from every other. */
  token: string;
  pid: number;
  /** Start of the process, in the kernel's ticks since boot. */
  startTicks: string;
  /** Of the kernel, and of the numbers that it gives to processes. */
  boot: string;
  pidNamespace: string;
  host: string;
  since: string;
}

/** A lock that this process holds. */
export interface RunLock {
  /** Lets go; idempotent. */
  release(): Promise<void>;
}

const textOf = (path: string) => readFile(path, "utf8").then((text) => text.trim());

/** Start time of a process that runs, or undefined: there is none, or only its remains that the parent has not collected. */
async function startTicksOf(pid: number | "self"): Promise<string | undefined> {
  const text = await textOf(`/proc/${pid}/stat`).catch(() => undefined);
  // The name, in brackets, may hold spaces and brackets. After it: state, then 18 others, then the start time.
  const fields = text?.slice(text.lastIndexOf(")") + 2).split(" ");
  return fields && !"ZX".includes(fields[0]!) ? fields[19] : undefined;
}

async function ownHolder(): Promise<Holder> {
  return {
    token: randomUUID(),
    pid: process.pid,
    startTicks: (await startTicksOf("self")) ?? "",
    boot: await textOf("/proc/sys/kernel/random/boot_id").catch(() => ""),
    pidNamespace: await readlink("/proc/self/ns/pid").catch(() => ""),
    host: hostname(),
    since: new Date().toISOString(),
  };
}

/** What the file says; `undefined`: nothing, because its maker died (or is) between making and writing it. */
async function readHolder(path: string): Promise<Holder | undefined> {
  const holder = await readFile(path, "utf8")
    .then(JSON.parse)
    .catch(() => undefined);
  return typeof holder?.token === "string" && Number.isInteger(holder.pid) ? (holder as Holder) : undefined;
}

const isThere = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  );

/** Whether the file stays untouched for as long as a living holder never leaves it. By its own clock: machines disagree about the time. */
async function staysUntouched(path: string): Promise<boolean> {
  const touched = () =>
    stat(path).then(
      (info) => info.mtimeMs,
      () => undefined,
    );
  const first = await touched();
  for (let waited = 0; waited < LOCK_TIMES.watchMs; waited += LOCK_TIMES.touchMs / 4) {
    await sleep(LOCK_TIMES.touchMs / 4);
    if ((await touched()) !== first) return false;
  }
  return true;
}

async function isDead(path: string, holder: Holder | undefined, own: Holder): Promise<boolean> {
  const askable = holder && holder.boot === own.boot && holder.pidNamespace === own.pidNamespace;
  if (askable && own.boot !== "") return (await startTicksOf(holder.pid)) !== holder.startTicks;
  // The same machine after a restart.
  if (holder && own.boot !== "" && holder.host === own.host && holder.boot !== own.boot) return true;
  return staysUntouched(path);
}

function refusal(folder: string, holder: Holder | undefined, own: Holder): DanceError {
  const where = holder && holder.host !== own.host ? ` on ${holder.host}` : "";
  const who = holder ? `process ${holder.pid}${where} since ${holder.since}` : "another process";
  return new DanceError(
    "ERR_OUTPUT",
    `${folder}: expected a folder that no run writes to, got one in use by ${who}`,
    {
      hint: "wait for it to end, or choose another output.folder",
    },
  );
}

/**
 * Removes a dead holder's file. Several may have found it dead: the right to remove it is a file of its own, and whoever has that looks
 * again, so that a slow one does not remove the lock that a quicker one has made since.
 */
async function removeDead(path: string, dead: Holder | undefined, own: Holder): Promise<void> {
  const right = `${path}.tmp-${dead?.token ?? "unknown"}`;
  if (!(await create(right, own))) {
    // Its maker needs it for a moment only; one that died within it left it behind.
    const age =
      Date.now() -
      (await stat(right).then(
        (info) => info.mtimeMs,
        () => Number.POSITIVE_INFINITY,
      ));
    if (age > STALE_RIGHT_MS) await rm(right, { force: true });
    await sleep(10);
    return;
  }
  try {
    if ((await readHolder(path))?.token === dead?.token) await rm(path, { force: true });
  } finally {
    await rm(right, { force: true });
  }
}

async function create(path: string, own: Holder): Promise<boolean> {
  try {
    await writeFile(path, `${JSON.stringify(own, null, 2)}\n`, { flag: "wx" });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

function held(path: string, own: Holder): RunLock {
  const touch = setInterval(() => {
    const now = new Date();
    utimes(path, now, now).catch(() => {});
  }, LOCK_TIMES.touchMs);
  touch.unref();
  const atExit = () => rmSync(path, { force: true });
  process.once("exit", atExit);
  let holding = true;
  return {
    async release() {
      if (!holding) return;
      holding = false;
      clearInterval(touch);
      process.off("exit", atExit);
      if ((await readHolder(path))?.token === own.token) await rm(path, { force: true });
    },
  };
}

/**
 * Takes the lock of a run folder; a dead process's lock is taken over. Where several ranks share a folder, one of them takes it for all.
 *
 * @throws {DanceError} `ERR_OUTPUT` when a living process holds it, naming the process and since when.
 */
export async function lockRunFolder(folder: string): Promise<RunLock> {
  const path = join(folder, LOCK);
  const own = await ownHolder();
  for (let round = 0; round < ROUNDS; round++) {
    if (await create(path, own)) return held(path, own);
    const holder = await readHolder(path);
    if (!holder && !(await isThere(path))) continue;
    if (!(await isDead(path, holder, own))) throw refusal(folder, await readHolder(path), own);
    await removeDead(path, holder, own);
  }
  throw refusal(folder, await readHolder(path), own);
}
