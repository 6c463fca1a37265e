// One process at a time writes into a run folder.
import { spawn } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, describe, expect, it } from "vitest";
import { LOCK, LOCK_TIMES, lockRunFolder } from "../lib/grpo/run_lock.js";
import { testFolder } from "./support/device.js";

const folder = testFolder();
let runs = 0;
function newFolder(): string {
  const path = join(folder, `run${runs++}`);
  mkdirSync(path);
  return path;
}

const read = (run: string) => JSON.parse(readFileSync(join(run, LOCK), "utf8"));
const refused = (run: string, part: string) =>
  expect(lockRunFolder(run)).rejects.toMatchObject({
    code: "ERR_OUTPUT",
    message: expect.stringContaining(part),
    hint: expect.stringContaining("output.folder"),
  });

/** A lock as another process would have left it: this one's, changed. */
async function leave(run: string, changes: object): Promise<void> {
  const lock = await lockRunFolder(run);
  const own = read(run);
  await lock.release();
  writeFileSync(join(run, LOCK), JSON.stringify({ ...own, token: "other", ...changes }));
}

const startOf = (pid: number) => {
  const text = readFileSync(`/proc/${pid}/stat`, "utf8");
  return text.slice(text.lastIndexOf(")") + 2).split(" ")[19]!;
};

describe("the lock of a run folder", () => {
  const before = { ...LOCK_TIMES };
  afterAll(() => void Object.assign(LOCK_TIMES, before));

  it("is held by one, refused to others by name, free again afterwards", async () => {
    const run = newFolder();
    const lock = await lockRunFolder(run);
    const { since } = read(run);
    await refused(
      run,
      `${run}: expected a folder that no run writes to, got one in use by process ${process.pid} since ${since}`,
    );
    await lock.release();
    await lock.release();
    expect(readdirSync(run)).toEqual([]);
    await (await lockRunFolder(run)).release();
  });

  it("of another process counts until that is killed, even before its parent has noticed", async () => {
    const run = newFolder();
    const other = spawn(process.execPath, ["-e", "setTimeout(() => {}, 60000)"], { stdio: "ignore" });
    const ended = new Promise((resolve) => other.once("exit", resolve));
    await leave(run, { pid: other.pid, startTicks: startOf(other.pid!) });
    await refused(run, `process ${other.pid} since`);
    other.kill("SIGKILL");
    await ended;
    const lock = await lockRunFolder(run);
    expect(read(run).pid).toBe(process.pid);
    await lock.release();
    expect(readdirSync(run)).toEqual([]);
  });

  it("of a process whose number came again, or from before a restart, is taken over", async () => {
    for (const changes of [{ startTicks: "1" }, { boot: "an earlier one" }]) {
      const run = newFolder();
      await leave(run, changes);
      await (await lockRunFolder(run)).release();
      expect(readdirSync(run)).toEqual([]);
    }
  });

  it("from another machine or container counts while its holder touches it", async () => {
    Object.assign(LOCK_TIMES, { touchMs: 20, watchMs: 2000 });
    for (const changes of [{ host: "elsewhere", boot: "other" }, { pidNamespace: "pid:[1]" }]) {
      const run = newFolder();
      await leave(run, changes);
      const touch = setInterval(() => utimesSync(join(run, LOCK), new Date(), new Date()), 20);
      await refused(run, "host" in changes ? `process ${process.pid} on elsewhere since` : "since");
      clearInterval(touch);
      LOCK_TIMES.watchMs = 60;
      await (await lockRunFolder(run)).release();
      LOCK_TIMES.watchMs = 2000;
    }
  });

  it("that says nothing was being made when its maker died", async () => {
    Object.assign(LOCK_TIMES, { touchMs: 20, watchMs: 60 });
    for (const content of ["", "{", "null", '{"pid": 1}']) {
      const run = newFolder();
      writeFileSync(join(run, LOCK), content);
      await (await lockRunFolder(run)).release();
    }
  });

  it("goes to one of several that find it dead", async () => {
    const run = newFolder();
    await leave(run, { startTicks: "1" });
    const all = await Promise.allSettled(Array.from({ length: 8 }, () => lockRunFolder(run)));
    const taken = all.filter((entry) => entry.status === "fulfilled");
    expect(taken.length).toBe(1);
    await taken[0]!.value.release();
    expect(readdirSync(run)).toEqual([]);
  });

  it("is touched while it is held", async () => {
    Object.assign(LOCK_TIMES, { touchMs: 10, watchMs: 60 });
    const run = newFolder();
    const lock = await lockRunFolder(run);
    utimesSync(join(run, LOCK), 1, 1);
    for (let i = 0; i < 200 && statSync(join(run, LOCK)).mtimeMs < 2000; i++) await sleep(10);
    expect(statSync(join(run, LOCK)).mtimeMs).toBeGreaterThan(2000);
    await lock.release();
  });
});
