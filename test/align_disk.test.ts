// A disk that is truly full: a small file system of the test's own, in namespaces that need no rights; and /dev/full.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { compareDumps } from "../lib/align/compare.js";
import { DumpWriter } from "../lib/align/dump.js";
import { readDump, recordRun } from "../lib/align/index.js";
import { loadConfig } from "../lib/load_config.js";
import { testFolder } from "./support/device.js";
import { compiled, dist } from "./support/processes.js";
import { writeTinyConfig } from "./support/training_ranks.js";

const folder = testFolder();
const at = (name: string) => join(folder, name);
const config = writeTinyConfig(at("model"));

/** Runs a shell command beside a file system of so many KiB at `disk`, which is gone afterwards. */
function beside(disk: string, kib: number, command: string) {
  mkdirSync(disk, { recursive: true });
  const script = `mount -t tmpfs -o size=${kib}k danceflux-test "${disk}" || exit 99\n${command}`;
  return spawnSync("unshare", ["--user", "--map-root-user", "--mount", "sh", "-c", script], {
    encoding: "utf8",
  });
}

const permitted = beside(at("probe"), 16, "true").status === 0;

describe("a full disk", () => {
  compiled();

  it.skipIf(!permitted).each([
    ["full", 3000],
    ["statistics", 40],
  ])("stops a recording of %s cleanly: what fitted can be compared", async (summary, kib) => {
    const [disk, kept] = [at(`disk-${summary}`), at(`kept-${summary}`)];
    const program = `"${process.execPath}" "${join(dist, "cli.js")}"`;
    const record = `${program} align record "${config}" --out "${disk}/dump" --level op --summary ${summary}`;
    const ended = beside(disk, kib, `${record}\nstatus=$?\ncp -r "${disk}/dump" "${kept}"\nexit $status`);
    expect([ended.status, ended.signal, ended.stdout]).toEqual([2, null, ""]);
    expect(ended.stderr).toMatch(/ERR_FILE|cannot be (written|synced)/);
    expect(ended.stderr).toMatch(/no space left on device/i);
    expect(ended.stderr).not.toMatch(/\n\s+at /); // a message, not a stack
    expect(readdirSync(kept).filter((name) => name.includes(".tmp-"))).toEqual([]);
    const dump = await readDump(kept);
    expect(dump.complete).toBe(false);
    expect(dump.records.length).toBeGreaterThan(20);
    const files = dump.records.flatMap(({ file }) => file ?? []);
    for (const file of files) expect(existsSync(join(kept, file))).toBe(true);
    const whole = at(`whole-${summary}`);
    await recordRun(await loadConfig(config), { out: whole, level: "op", summary: "statistics", steps: [0] });
    const comparison = await compareDumps(dump, await readDump(whole));
    expect(comparison.first).toBeUndefined();
    expect(comparison.warnings.join()).toContain("cut short");
  });

  it("is told by the manifest's writer", async () => {
    const out = at("manifest");
    const writer = await DumpWriter.create(out, { danceflux: "dump" } as never);
    const path = join(out, "manifest.jsonl");
    rmSync(path);
    symlinkSync("/dev/full", path);
    await writer.write(["{}"]);
    await expect(writer.flush()).rejects.toMatchObject({
      code: "ERR_FILE",
      message: expect.stringMatching(/ENOSPC/),
    });
  });
});
